"""``up check``: what it proves without training, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.refusals import contents, refused
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]


def checked(path: str, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["check", *words, "--config", path]) == 0
    return capsys.readouterr().out.splitlines()


def test_says_what_was_proved_and_creates_nothing(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    before = contents(tmp_path, images)
    lines = checked(path, capsys)
    assert contents(tmp_path, images) == before
    assert lines[:4] == [
        "train: 46 images, 6 updates an epoch, 12 in all",
        "first training sample: (3, 32, 32)",
        "test: 13 images; first sample: (3, 32, 32)",
        "net: 77.55k parameters, 77.55k of them trainable",
    ]
    found = re.fullmatch(r"one batch of 2 x 3 x 32 x 32 through net, loss and backward: loss (\d\.\d{3})", lines[4])
    assert found
    assert 0.2 < float(found[1]) < 3  # of three classes by chance: log 3 = 1.1
    assert lines[5:] == [f"{path}: good"]


def test_no_files_proves_all_but_the_data(config: Config, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["meta_file"] = "not/there.txt"
    config["saver"]["pretrain_model"] = "not/there.pth"
    path = write(config)
    lines = checked(path, capsys, "--no-files")
    assert [line.split(":")[0] for line in lines] == [
        "net", "one batch of 2 x 3 x 32 x 32 through net, loss and backward", path,
    ]  # fmt: skip
    missing = refused(["check", "--config", path], capsys, tmp_path)
    assert [line.split(": ")[1] for line in missing] == [
        "dataset.train.dataset.kwargs.meta_file", "dataset.test.dataset.kwargs.meta_file", "saver.pretrain_model",
    ]  # fmt: skip


def test_classes_left_to_the_data(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    del config["net"][1]["kwargs"]["num_classes"]
    path = write(config)
    assert "net: 77.55k parameters, 77.55k of them trainable" in checked(path, capsys)
    assert "net: 78.00k parameters, 78.00k of them trainable" in checked(path, capsys, "--no-files")  # with ten for want of data


def test_parameters_that_get_no_gradient_are_listed(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    aside = {"name": "aside", "type": "base_cls_head", "kwargs": {"num_classes": 3}}
    config["net"].insert(1, aside)
    config["net"][2]["prev"] = "backbone"
    lines = checked(write(config), capsys)
    assert lines[-2] == "note: 2 parameters got no gradient, the first is aside.classifier.weight; freeze what is not used"


def test_what_older_files_spell_otherwise_is_noted(config: Config, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config["fp16"] = True
    path = write(config)
    line = len(Path(path).read_text().splitlines())
    assert checked(path, capsys)[0] == f"note: {path}:{line}: fp16: belongs in runtime and was taken as runtime.fp16"


def without_names(config: Config) -> None:
    for source in ("train", "test"):
        del config["dataset"][source]["dataset"]["kwargs"]["class_names"]


def narrow_head(config: Config) -> None:
    without_names(config)
    config["net"][1]["kwargs"]["num_classes"] = 2


def two_heads(config: Config) -> None:
    without_names(config)
    config["net"][1]["kwargs"]["num_classes"] = [3, 3]


def other_width(config: Config) -> None:
    config["net"][1]["kwargs"]["num_classes"] = 4


def large_batch(config: Config) -> None:
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 47


def two_losses(config: Config) -> None:
    config["net"][2]["kwargs"]["cls_loss"] = [{"type": "ce"}, {"type": "ce"}]


def no_size(config: Config) -> None:
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["transformer"] = [{"type": "to_tensor"}]


def levels(config: Config) -> None:
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"] = [{"type": "torch_resize", "kwargs": {"size": [32, 32]}}]


def bad_hook(config: Config) -> None:
    config["trainer"]["clip_norm"] = 1.0
    config["hooks"] = [{"type": "grad_clipper", "kwargs": {"max_norm": 1.0}}]


def bad_mixing(config: Config) -> None:
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "batch_cutmix", "kwargs": {"num_classes": 5}}


def bad_schedule(config: Config) -> None:
    config["trainer"]["lr_scheduler"] = {"type": "MultiStepLR", "kwargs": {"milestones": [3, 2]}}


def nothing_to_train(config: Config) -> None:
    config["net"].append({"name": "all", "type": "self", "kwargs": {"freeze_patterns": ["backbone", "head"]}})


def odd_images(config: Config) -> None:
    config["net"][0] = {"name": "backbone", "type": "vit_tiny_patch16_224", "kwargs": {"img_size": 64}}


def no_loss(config: Config) -> None:
    del config["net"][2]


FAULTS: list[tuple[Callable[[Config], None], str]] = [
    (narrow_head, "net.1: num_classes: got 2, but the labels of dataset.train need at least 3."),
    (two_heads, "net.1: num_classes: got [3, 3], but dataset.train has one label for each image."),
    (other_width, "net.1.kwargs.num_classes: got 4, but 3 follows from the class names of dataset.train"),
    (large_batch, "dataset.train.batch_sampler.kwargs.batch_size: 46 images for training, fewer than one update takes: 47"),
    (two_losses, "net: cls_loss lists 2 losses, but the net has 1 head."),
    (no_size, "dataset.test.dataset.kwargs.transformer: leaves every image its own size (expected torch_center_crop"),
    (levels, "dataset.test.dataset.kwargs.transformer: got transforms that leave images as uint8 levels"),
    (bad_hook, "hooks: the gradients would be clipped twice"),
    (bad_mixing, "dataset.train.dataloader.kwargs.batch_fn.kwargs.num_classes: got 5, but 3 follows from the class names"),
    (bad_schedule, "trainer.lr_scheduler: milestones are [3, 2], expected rising epochs"),
    (nothing_to_train, "trainer.optimizer: nothing to train: all 38 parameters are frozen."),
    (no_loss, "net: the net computes no loss, only image,"),
    (odd_images, "net: the backbone was built for images of 64x64 pixels and got 32x32."),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_finds(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Config], None], message: str,
) -> None:  # fmt: skip
    spoil(config)
    path = write(config)
    (line,) = refused(["check", "--config", path], capsys, tmp_path, images)
    assert re.match(rf"{re.escape(path)}:\d+: {re.escape(message)}", line), line
