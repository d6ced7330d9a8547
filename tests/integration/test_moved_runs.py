"""A run folder that is no longer where it was trained stands for itself, not for the run that has its place now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.harness.runs import train
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.api import build_model, evaluate, load
from up.engine.checkpoint import load_checkpoint
from up.report.folder import open_run
from up.schema.decode import if_moved


@pytest.fixture(scope="module")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the run ``run`` of two epochs, and a copy of the one epoch that was there before."""
    made = tmp_path_factory.mktemp("moved")
    config = tiny_config(images, Path("run"))
    config["trainer"]["max_epoch"] = 1
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert train("config.yaml") == 0
        shutil.copytree("run", "1")
        assert train("config.yaml", "saver.save_dir=run", "saver.auto_resume=false", "runtime.random_seed=8") == 0
    return made


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_in_python() -> None:
    """A folder may have a name that YAML takes for a number."""
    copy, now = load("1"), load("run")
    assert (copy.checkpoint.parent, now.checkpoint.parent) == (Path("1"), Path("run"))
    weights = load_checkpoint(Path("1/ckpt_best.pth"))["model"]
    assert all(torch.equal(own, weights[name]) for name, own in build_model("1").state_dict().items())
    assert copy.metrics["loss"] != now.metrics["loss"]
    assert evaluate("1")["loss"] == pytest.approx(copy.metrics["loss"])
    assert Path("1/results/metrics.json").is_file()
    assert open_run(Path("1")).experiment.folder == Path("1")


def test_on_the_command_line() -> None:
    assert main(["eval", "1", "--out", "of_copy"]) == 0
    assert main(["eval", "run", "--out", "of_run"]) == 0
    losses = [json.loads(Path(out, "metrics.json").read_text())["loss"] for out in ("of_copy", "of_run")]
    assert losses == pytest.approx([load("1").metrics["loss"], load("run").metrics["loss"]])
    (earlier,) = Path("run/earlier").iterdir()
    assert load(earlier).checkpoint == earlier / "ckpt_best.pth"


def scores(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    capsys.readouterr()
    assert main(["predict", *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_by_the_configuration_in_the_copy(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``config.yaml`` of a copied run reads the weights beside it; one without weights beside it those of its run."""
    image = str(next(images.rglob("*.png")))
    by_hand = [scores(capsys, "1/config.yaml", "-c", f"{run}/ckpt_best.pth", image) for run in ("1", "run")]
    assert scores(capsys, "1/config.yaml", image) == by_hand[0] != by_hand[1]
    assert scores(capsys, "config.yaml", image) == scores(capsys, "run/config.yaml", image) == by_hand[1]
    assert evaluate("1/config.yaml")["loss"] == pytest.approx(load("1").metrics["loss"])
    assert main(["eval", "1/config.yaml", "--out", "by_file"]) == 0
    assert json.loads(Path("by_file/metrics.json").read_text())["loss"] == pytest.approx(load("1").metrics["loss"])
    assert main(["to_onnx", "--config", "1/config.yaml", "--save-prefix", "of_copy/model"]) == 0
    assert main(["predict", "1/config.yaml", image, "-o", "saver.save_dir=run", "--format", "json", "--output", "now.json"]) == 0
    assert json.loads(Path("now.json").read_text()) == by_hand[1]


def test_a_run_at_its_place_is_not_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert if_moved(Path("run")) == []
    assert if_moved(Path("run").resolve()) == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("net: 3")
    assert if_moved(tmp_path) == []  # its mistakes are reported where it is used
