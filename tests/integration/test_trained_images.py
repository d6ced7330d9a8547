"""An evaluation on images that the checkpoint was trained on is an error, also by another YAML file and under other names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.harness.facts import tells
from tests.harness.runs import times_resumed, train
from tests.harness.states import checkpoint
from up import api
from up.__main__ import main
from up.engine.trained_images import LIMIT, recorded_in
from up.errors import UserError
from up.run_files import TRAINED_IMAGES

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture
def leaking(config: Config, write: Write, images: Path, tmp_path: Path) -> Path:
    """Train the run, then write a configuration whose test data are copies of three of its training images and of a new one."""
    assert train(write(config), "trainer.max_epoch=1") == 0
    (tmp_path / "copies").mkdir()
    for at, name in enumerate(("train 0.png", "train 7.png", "train 9.png", "val 0.png")):
        shutil.copy(images / name, tmp_path / "copies" / f"{at}.png")
    kwargs = config["dataset"]["test"]["dataset"]["kwargs"]
    kwargs["meta_file"] = str(tmp_path / "copies.txt")
    kwargs["image_reader"]["kwargs"]["image_dir"] = str(tmp_path / "copies")
    (tmp_path / "copies.txt").write_text("0.png 0\n1.png 1\n2.png 0\n3.png 0\n")
    return Path(write(config))


def test_copies_of_training_images_are_not_evaluated(leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(leaking), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert tells(told, str(leaking), "dataset.test", "3 of 4 test images", "0.png", "--allow-trained-images")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        api.evaluate(leaking)
    assert main(["eval", str(leaking), "--allow-trained-images", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_checkpoint_and_run_folder_have_the_record(leaking: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = checkpoint(run)["hooks"]["TrainedImages"]
    assert (state["images"], len(state["keys"]), state["unread"], state["reason"]) == (46, 46, 0, "")
    with np.load(run / TRAINED_IMAGES) as found:
        assert found["keys"].tolist() == state["keys"].tolist()
    content = torch.load(run / "ckpt_latest.pth", weights_only=True)
    moved = tmp_path / "moved"
    moved.mkdir()
    torch.save({"model": content["model"]}, moved / "bare.pth")
    assert recorded_in(moved / "bare.pth").keys is None
    shutil.copy(run / TRAINED_IMAGES, moved)
    recorded = recorded_in(moved / "bare.pth").keys
    assert recorded is not None
    assert recorded.tolist() == state["keys"].tolist()
    keys = state["keys"]
    assert train(str(leaking), "trainer.max_epoch=2", "saver.auto_resume=true") == 0
    assert times_resumed(run) == 1
    assert torch.equal(checkpoint(run)["hooks"]["TrainedImages"]["keys"], keys)


def test_larger_data_sets_say_that_they_are_not_recorded(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LIMIT >= 50_000
    monkeypatch.setattr("up.engine.trained_images.LIMIT", 40)
    assert train(write(config), "trainer.max_epoch=1") == 0
    recorded = recorded_in(tmp_path / "run" / "ckpt_latest.pth")
    assert recorded.keys is None
    assert tells(recorded.reason, "46 images", "40")
