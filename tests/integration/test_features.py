"""Cached features of frozen modules: as an ordinary run on the same views, each image through the backbone once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.harness.facts import tells
from tests.harness.ranks import Cluster, Server, start
from tests.harness.runs import records, times_resumed, train
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import transforms
from up.__main__ import main
from up.engine.rows import KEY_BYTES
from up.models.adapter import Backbone

Config = dict[str, Any]
Write = Callable[[Config], str]
RESIZE = {"type": "torch_resize", "kwargs": {"size": [32, 32]}}
FLIP = {"type": "torch_random_horizontal_flip"}
IMAGES = 46


@pytest.fixture
def config(config: Config) -> Config:
    """A linear probe on two views of every image; the frozen weights are random."""
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"] = transforms(RESIZE, FLIP)
    config["finetune"] = {"freeze": "backbone", "features": "auto"}
    config["trainer"] |= {"max_epoch": 2, "keep_last": "all", "log_interval": 100}
    return config


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each forward pass of a backbone in training and in the pass over the features."""
    counted: list[int] = []
    plain = Backbone.forward

    def counting(self: nn.Module, record: dict[str, Tensor]) -> Any:
        counted.append(len(record["image"]))
        return plain(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "forward", counting)
    return counted


def assert_close(one: Path, other: Path, name: str = "ckpt_latest.pth", *, atol: float = 1e-5) -> None:
    ours, theirs = (torch.load(run / name, weights_only=True)["model"] for run in (one, other))
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


PROBE = {"probe": {"epochs": 1, "lr": 0.05}, "features": "auto"}


@pytest.mark.parametrize("section", [{"freeze": "backbone", "features": "auto"}, PROBE], ids=["freeze", "probe"])
def test_as_an_ordinary_run_on_the_same_views(config: Config, write: Write, tmp_path: Path, section: Config) -> None:
    config["finetune"], config["net"][1]["kwargs"]["dropout"] = section, 0.2
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.9}}
    path = write(config)
    assert train(path) == 0
    assert train(path, f"saver.save_dir={tmp_path / 'plain'}", "finetune.features=every_step") == 0
    assert_close(tmp_path / "run", tmp_path / "plain", "ckpt_e1.pth")
    assert_close(tmp_path / "run", tmp_path / "plain", atol=1e-5 if "freeze" in section else 1e-3)
    for ours, theirs in zip(records(tmp_path / "run", "eval"), records(tmp_path / "plain", "eval"), strict=True):
        assert ours["top1"] == theirs["top1"]
    assert not (tmp_path / "run" / "features").exists()


def test_each_view_of_an_image_passes_once(config: Config, write: Write, forwards: list[int], capsys: Any) -> None:
    config["trainer"]["is_eval"] = False
    assert train(write(config)) == 0
    checked = sum(number for number in forwards if number == 2)  # two images of the checks before the start, and of the last chunk
    assert sum(number for number in forwards if number > 2) == 2 * IMAGES
    assert checked < 2 * IMAGES
    assert tells(capsys.readouterr().err, "finetune.features", "46 images", "mirror", "dataset.train")


def test_the_fixed_view_is_that_of_the_evaluation(config: Config, write: Write, tmp_path: Path, capsys: Any) -> None:
    """Random transforms in the file; the head trains as in a run whose transforms are those of the evaluation, and the flip."""
    steady = write(config)
    assert train(steady, f"saver.save_dir={tmp_path / 'steady'}") == 0
    crop = {"type": "torch_random_resized_crop", "kwargs": {"size": 32, "scale": [0.5, 1.0]}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"] = transforms(crop, FLIP)
    path = write(config)
    assert train(path, "finetune.features=fixed_view") == 0
    assert tells(capsys.readouterr().err, "finetune.features", "dataset.test", "mirror")
    assert_same(checkpoint(tmp_path / "steady")["model"], checkpoint(tmp_path / "run")["model"])
    assert train(path, f"saver.save_dir={tmp_path / 'random'}") == 0
    assert tells(capsys.readouterr().err, "every step", "RandomResizedCrop", "fixed_view")


def test_after_a_probe_the_random_transforms_train_the_whole_net(config: Config, write: Write, tmp_path: Path) -> None:
    crop = {"type": "torch_random_resized_crop", "kwargs": {"size": 32, "scale": [0.5, 1.0]}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"] = transforms(crop, FLIP)
    config["finetune"] = {"probe": {"epochs": 2}, "features": "fixed_view"}
    config["trainer"]["max_epoch"] = 3
    assert train(write(config)) == 0
    first, probed, last = (torch.load(tmp_path / "run" / f"ckpt_e{epoch}.pth", weights_only=True)["model"] for epoch in (1, 2, 3))
    name = "backbone.conv1.weight"
    assert torch.equal(first[name], probed[name])
    assert not torch.equal(probed[name], last[name])


def test_killed_and_resumed_is_bit_equal(config: Config, write: Write, server: Server, tmp_path: Path, forwards: list[int]) -> None:
    """Killed while the features are computed (those of one view and some of the other are there), on features, and in the steps
    after them."""
    config["finetune"] = PROBE
    config["trainer"] |= {"save_interval": 2, "is_eval": False}
    config["saver"]["auto_resume"] = True
    path = write(config)
    assert train(path, f"saver.save_dir={tmp_path / 'whole'}") == 0
    for step, images in ((0, 2 * IMAGES), (3, IMAGES), (8, IMAGES - 2 * 8)):  # of the second view, and of the steps left on images
        run = tmp_path / str(step)
        words = ["train", "--config", path, "--opts", f"saver.save_dir={run}"]
        killed = start(server, tmp_path, words, world=1, environment={"UP_FAULT": f"step={step},action=kill"})
        assert killed.wait() == [-signal.SIGKILL], killed.said
        kept = [*(run / "features").rglob("*.keys")]
        assert bool(kept) == (step < 6)
        for keys in kept if step == 0 else ():
            with keys.open("r+b") as file:
                file.truncate((IMAGES + 20) * KEY_BYTES)  # in the middle of a chunk
        forwards.clear()
        assert train(path, f"saver.save_dir={run}") == 0
        assert times_resumed(run) == (step > 0)  # nothing is saved before the features
        assert sum(number for number in forwards if number > 2) == images
        for part in ("model", "optimizer"):
            assert_same(checkpoint(tmp_path / "whole")[part], checkpoint(run)[part], str(step))


def test_two_ranks_train_as_one(config: Config, cluster: Callable[[], Cluster], tmp_path: Path) -> None:
    """Two epochs on features, and one of the whole net."""
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 2}}
    config["finetune"] = {"probe": {"epochs": 2, "lr": 0.05}, "features": "auto"}
    config["trainer"] |= {"is_eval": False, "max_epoch": 3}
    runs = cluster()
    assert train(runs.path, f"saver.save_dir={tmp_path / '1'}") == 0
    runs.run(f"saver.save_dir={tmp_path / '2'}")
    assert_close(tmp_path / "1", tmp_path / "2")


def test_a_signal_while_features_are_computed_stops_the_run(
    config: Config, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("up.engine.features.CHUNK", 4)
    config["saver"]["auto_resume"] = True
    path, plain, seen = write(config), Backbone.forward, []

    def interrupting(self: nn.Module, record: dict[str, Tensor]) -> Any:
        seen.append(len(record["image"]))
        if seen.count(4) == 3:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "forward", interrupting)
    assert train(path) == 75
    assert seen.count(4) < 6
    monkeypatch.setattr(Backbone, "forward", plain)
    assert train(path) == 0
    assert times_resumed(tmp_path / "run") == 1
    assert train(path, f"saver.save_dir={tmp_path / 'whole'}") == 0
    assert_same(checkpoint(tmp_path / "whole")["model"], checkpoint(tmp_path / "run")["model"])


def test_a_bad_image_ends_all_ranks_or_is_replaced(
    config: Config, cluster: Callable[[], Cluster], write: Write, images: Path, tmp_path: Path
) -> None:
    listed = (images / "train.txt").read_text().splitlines()
    (tmp_path / "broken.png").write_bytes(b"no image")
    meta = tmp_path / "train.txt"
    meta.write_text("".join(f"{images / line}\n" for line in listed) + f"{tmp_path / 'broken.png'} 1\n" + f"{images / listed[0]}\n")
    kwargs = config["dataset"]["train"]["dataset"]["kwargs"]
    kwargs |= {"meta_file": str(meta), "image_reader": {"type": "fs_pillow", "kwargs": {"image_dir": "/"}}, "allow_outside": True}
    ended = cluster().start(f"saver.save_dir={tmp_path / 'ended'}")
    assert ended.wait() == [2, 2], ended.said
    assert "broken.png" in ended.said
    kwargs |= {"on_bad_image": "skip", "max_bad": 1}
    assert train(write(config)) == 0
    assert "broken.png" in (tmp_path / "run" / "bad_images.jsonl").read_text()


REASONS: dict[str, tuple[Config, tuple[str, ...]]] = {
    "nothing is frozen": ({"finetune": {"features": "auto"}}, ("backbone trains",)),
    "unfreezing": ({"finetune": {"unfreeze": {"blocks": 100}}}, ("unfreeze",)),  # the head alone trains in the first epoch
    "mixing": ({"mixing": {"type": "batch_mixup"}}, ("mixed",)),
    "feature map": ({"head": {"use_pool": False, "in_plane": 1024}}, ("ResNetHead", "pooled")),
    "no evaluation": ({"features": "fixed_view", "test": None}, ("dataset.test",)),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons_for_the_ordinary_path(config: Config, write: Write, tmp_path: Path, capsys: Any, case: str) -> None:
    changed, facts = deepcopy(REASONS[case])
    config["finetune"] = changed.get("finetune", config["finetune"])
    config["finetune"]["features"] = changed.get("features", "auto")
    config["net"][1]["kwargs"] |= changed.get("head", {})
    if "mixing" in changed:
        config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = changed["mixing"]
    if "test" in changed:
        config["dataset"].pop("test")
    path = write(config)
    assert main(["check", "--config", path]) == 0
    assert tells(capsys.readouterr().out, "finetune.features", "every step", *facts)
    if case == "mixing":
        assert train(path, "trainer.max_iter=1") == 0
        assert tells(capsys.readouterr().err, "finetune.features", "every step", *facts)
