"""``up check`` and the data: what training would stop for is refused by both, what is probably a mistake is a warning."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.facts import tells
from tests.harness.refusals import refused
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]


def kwargs(config: Config, source: str) -> Config:
    found: Config = config["dataset"][source]["dataset"]["kwargs"]
    return found


def picture(path: Path, colour: tuple[int, ...] = (200, 30, 30)) -> str:
    """An image of one colour; transparent where the colour has four numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", (32, 32), colour).save(path)
    return path.name


def listed(config: Config, source: str, folder: Path, labels: list[int], colour: tuple[int, ...] = (200, 30, 30)) -> list[Path]:
    """Let a source be images with these labels; no names of classes are given. Returns the images."""
    paths = [folder / f"{source} {number}.png" for number in range(len(labels))]
    lines = [f"{picture(path, colour)} {label}\n" for path, label in zip(paths, labels, strict=True)]
    (folder / f"{source}.txt").write_text("".join(lines))
    kwargs(config, source).update(meta_file=str(folder / f"{source}.txt"))
    kwargs(config, source)["image_reader"]["kwargs"]["image_dir"] = str(folder)
    kwargs(config, source).pop("class_names", None)
    return paths


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


LABELS = [0, 1, 2] * 5


def checked(path: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], list[str]]:
    """The warnings of a check that succeeds, and the other lines."""
    capsys.readouterr()
    assert main(["check", *words, "--config", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    told = f", {len(warnings)} warning{'s' if len(warnings) > 1 else ''}" if warnings else ""
    assert lines[-1] == f"OK: {path} is valid{told}"
    assert lines[-1 - len(warnings) : -1] == warnings, "they stand where they are seen"
    return warnings, [line for line in lines[:-1] if line not in warnings]


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize(("source", "at"), [("train", 0), ("train", -1), ("test", 0)])
def test_a_first_image_that_is_none(
    config: Config, write: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, source: str, at: int
) -> None:
    images = {name: listed(config, name, data, LABELS) for name in ("train", "test")}
    images[source][at].write_text("this is text\n")
    (line,) = refused([command, "--config", write(config)], capsys, tmp_path)
    number = at % len(LABELS) + 1
    assert tells(line, f"{data / source}.txt:{number}", source, f"{number - 1}.png", "13"), line
    assert "on_bad_image: skip" in line


@pytest.mark.parametrize("source", ["train", "test"])
def test_a_first_image_that_is_skipped_counts(
    config: Config, write: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    """The default max_bad of 1 % is less than one of 15 images."""
    listed(config, source, data, LABELS)[0].write_bytes(b"")
    kwargs(config, source)["on_bad_image"] = "skip"
    path = write(config)
    for command in ("check", "train"):
        (line,) = refused([command, "--config", path], capsys, tmp_path)
        assert tells(line, f"dataset.{source}.dataset.kwargs.max_bad", "1", "15", f"{data / source}.txt:1", source, "0")
    kwargs(config, source)["max_bad"] = 1
    warnings, _ = checked(write(config), capsys)
    assert [tells(warning, f"{data / source}.txt:1", source, "0.png") for warning in warnings] == [True] * (source == "train")


class TestImages:
    """``check --images`` opens all of them."""

    def spoiled(self, config: Config, data: Path) -> list[str]:
        """Two unreadable images of train and one of test, none of them the first or the last; their places."""
        train, test = (listed(config, source, data, LABELS * 8) for source in ("train", "test"))
        train[40].write_bytes(b"")
        train[77].unlink()
        test[5].write_bytes(test[5].read_bytes()[:60])
        return [f"{data}/train.txt:41: train 40.png: ", f"{data}/train.txt:78: train 77.png: ", f"{data}/test.txt:6: test 5.png: "]

    def test_all_that_cannot_be_read_is_listed(
        self, config: Config, write: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = self.spoiled(config, data)
        path = write(config)
        checked(path, capsys)  # it looks at the first and the last only
        *lines, remedy = refused(["check", "--images", "--config", path], capsys, tmp_path)
        assert [line.startswith(place) for line, place in zip(lines, places, strict=True)] == [True] * 3, lines
        assert "on_bad_image: skip" in remedy

    def test_skipped_ones_are_warnings_up_to_max_bad(
        self, config: Config, write: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = self.spoiled(config, data)
        for source in ("train", "test"):
            kwargs(config, source).update(on_bad_image="skip", max_bad=2)
        warnings, lines = checked(write(config), capsys, "--images")
        assert [warning.startswith(f"warning: {place}") for warning, place in zip(warnings, places, strict=True)] == [True] * 3
        assert tells(lines, "120", "images", "2")
        kwargs(config, "train")["max_bad"] = 1
        said = refused(["check", "--images", "--config", write(config)], capsys, tmp_path)
        assert tells(said[2], "dataset.train", "2", "120", "1", "max_bad")

    def test_a_long_list_is_cut_with_a_count(
        self, config: Config, write: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for image in listed(config, "train", data, LABELS * 8)[1:-1]:
            image.write_bytes(b"")
        said = refused(["check", "--images", "--config", write(config)], capsys, tmp_path)
        assert len(said) == 22
        assert said[20] == "and 98 more"

    def test_not_without_files(self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (line,) = refused(["check", "--images", "--no-files", "--config", write(config)], capsys, tmp_path)
        assert tells(line, "--images", "--no-files", "Remove")


def single(config: Config, data: Path) -> None:
    listed(config, "train", data, [0] * 8)
    config["net"][1]["kwargs"].pop("num_classes")


def from_one(config: Config, data: Path) -> None:
    for source in ("train", "test"):
        listed(config, source, data, [1, 2, 3] * 5)
    config["net"][1]["kwargs"].pop("num_classes")


def few(config: Config, data: Path) -> None:
    listed(config, "train", data, [0] * 9 + [1] * 4 + [2] * 6)


def unseen(config: Config, data: Path) -> None:
    listed(config, "test", data, [0, 0, 2])


def never_trained(config: Config, data: Path) -> None:
    listed(config, "train", data, [0, 2] * 6)


def empty_folder(config: Config, data: Path) -> None:
    for source in ("train", "test"):
        for name in ("ant", "bee", "cat"):
            for number in range(6):
                picture(data / source / name / f"{number}.png")
        kwargs(config, source).update(meta_file=str(data / source), meta_type="image_folder")
        kwargs(config, source).pop("class_names")
        kwargs(config, source)["image_reader"]["kwargs"].pop("image_dir")
    (data / "train" / "dog").mkdir()


def transparent(config: Config, data: Path) -> None:
    listed(config, "train", data, LABELS, (200, 30, 30, 0))


def two_backgrounds(config: Config, data: Path) -> None:
    kwargs(config, "train")["image_reader"]["kwargs"]["background"] = "white"


MISTAKES: list[tuple[Callable[[Config, Path], None], str, list[str]]] = [
    (single, "dataset.train.dataset.kwargs.meta_file", ["all images are of the class 0"]),
    (from_one, "dataset.train.dataset.kwargs.meta_file", ["no image has the label 0", "label_mapping: [-1]"]),
    (few, "dataset.train.dataset.kwargs.meta_file", ["1 class with fewer than 5 training images: ", "green 4"]),
    (unseen, "dataset.test.dataset.kwargs.meta_file", ["1 class without a validation image: green"]),
    (never_trained, "dataset.train.dataset.kwargs.meta_file", ["1 class without a training image: green"]),
    (empty_folder, "dataset.train.dataset.kwargs.meta_file", ["folders without an image are not classes: dog"]),
    (transparent, "dataset.train.dataset.kwargs.image_reader", ["15 of 15 sampled images have an alpha", "background: white"]),
    (two_backgrounds, "dataset.test.dataset.kwargs.image_reader", ["background: got drop", "dataset.train has [255, 255, 255]"]),
]


@pytest.mark.parametrize(("spoil", "key", "words"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_probably_a_mistake_is_a_warning(
    config: Config,
    write: Write,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Config, Path], None],
    key: str,
    words: list[str],
) -> None:
    """By ``check``, and in the log of a training, which goes on."""
    for source in ("train", "test"):
        kwargs(config, source)["evaluator"] = {"type": "imagenet", "kwargs": {"class_names": ["red", "green", "blue"]}}
    spoil(config, data)
    if spoil in (single, from_one):
        for source in ("train", "test"):
            del kwargs(config, source)["evaluator"]
            kwargs(config, source).pop("class_names", None)
    if spoil is single:
        listed(config, "test", data, [0] * 3)
    path = write(config)
    (warning,), _ = checked(path, capsys)
    assert re.match(rf"warning: {re.escape(path)}:\d+: {re.escape(key)}: ", warning), warning
    assert [word for word in words if word not in warning] == []
    assert main(["train", "--config", path, "--opts", "trainer.max_iter=1"]) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert warning.removeprefix("warning: ") in log


def test_composited_images_are_told_of(
    config: Config, write: Write, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transparent(config, data)
    for source in ("train", "test"):
        kwargs(config, source)["image_reader"]["kwargs"]["background"] = [1, 2, 3]
    path = write(config)
    warnings, lines = checked(path, capsys)
    line = "train: 15 of 15 sampled images have an alpha channel, composited over the background [1, 2, 3]"
    assert (warnings, line in lines) == ([], True)
    assert main(["train", "--config", path, "--opts", "trainer.max_iter=1"]) == 0
    assert line in (tmp_path / "run" / "train.log").read_text()


def test_bits_that_are_dropped_are_reported(config: Config, write: Write, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in listed(config, "train", data, LABELS)[:4]:
        Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(path)
    warnings, lines = checked(write(config), capsys)
    (line,) = (line for line in lines if "bits" in line)
    assert (warnings, tells(line, "train", "4 of 15", "8 bits", "fs_multichannel")) == ([], True)


@pytest.mark.parametrize("background", ["black", [0, 0], [0, 0, 256]])
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_background_that_is_no_colour(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], background: Any, command: str
) -> None:
    kwargs(config, "train")["image_reader"]["kwargs"]["background"] = background
    path = write(config)
    (line,) = refused([command, "--config", path], capsys, tmp_path)
    key = r"dataset\.train\.dataset\.kwargs\.image_reader\.kwargs\.background(\.2)?"
    assert re.match(rf"{re.escape(path)}:\d+: {key}: ", line), line


class TestWeightsToDownload:
    def test_are_a_warning_and_not_fetched(
        self, config: Config, write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("it was built, or even fetched"))
        monkeypatch.setattr("up.models.pretrained.try_to_load_from_cache", lambda *_: None)
        config["saver"]["pretrain_model"] = "timm:resnet18.a1_in1k"
        path = write(config)
        (warning, doubt), _ = checked(path, capsys)
        assert re.match(rf"warning: {re.escape(path)}:\d+: saver\.pretrain_model: timm:resnet18\.a1_in1k is not on this", warning)
        assert tells(doubt, "timm:resnet18.a1_in1k", "input size", "[3, 224, 224]", "[3, 32, 32]", "mean", "0.485", "0.4")

    def test_are_tried_where_they_are_here(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("up.models.pretrained.try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
        other = torch.nn.Linear(2, 3)
        monkeypatch.setattr("timm.create_model", lambda *_, **__: other)
        config["saver"]["pretrain_model"] = "timm:resnet18.a1_in1k"
        (line,) = refused(["check", "--config", write(config)], capsys, tmp_path)
        assert tells(line, "timm:resnet18.a1_in1k", "2", "tensors")


class TestWhatTrainStartsFrom:
    """Differences between the starts of ``train`` and ``check`` that would let a check pass."""

    @pytest.mark.parametrize("command", ["check", "train"])
    def test_a_checkpoint_that_is_none(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        torch.save({"model": {}}, tmp_path / "weights.pth")
        config["saver"]["resume_model"] = str(tmp_path / "weights.pth")
        (line,) = refused([command, "--config", write(config)], capsys, tmp_path)
        assert line.startswith(f"{tmp_path / 'weights.pth'}: ")

    @pytest.mark.parametrize("command", ["check", "train"])
    def test_a_run_that_cannot_go_on(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        assert main(["train", "--config", write(config), "--opts", "trainer.max_iter=1"]) == 0
        config["saver"]["resume_model"] = str(tmp_path / "run" / "ckpt_latest.pth")
        config["saver"]["save_dir"] = str(tmp_path / "other")
        config["runtime"]["random_seed"] = 8
        (line,) = refused([command, "--config", write(config)], capsys, tmp_path)
        assert "runtime.random_seed: 7 -> 8" in line

    @pytest.mark.parametrize("command", ["check", "train"])
    def test_a_folder_of_tensorboard_that_cannot_be_made(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        (tmp_path / "file").write_text("")
        config["hooks"] = [{"type": "train_val_logger", "kwargs": {"logdir": str(tmp_path / "file" / "x")}}]
        path = write(config)
        (line,) = refused([command, "--config", path], capsys, tmp_path)
        assert re.match(rf"{re.escape(path)}:\d+: hooks\.0\.kwargs\.logdir: ", line), line

    @pytest.mark.parametrize("command", ["check", "train"])
    def test_a_run_folder_that_cannot_be_made(
        self, config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        (tmp_path / "file").write_text("")
        config["saver"]["save_dir"] = str(tmp_path / "file" / "run")
        path = write(config)
        (line,) = refused([command, "--config", path], capsys, tmp_path)
        assert re.match(rf"{re.escape(path)}:\d+: saver\.save_dir: {re.escape(str(tmp_path / 'file' / 'run'))}", line), line
