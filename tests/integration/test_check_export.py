"""What an export would refuse after training is refused before it, by ``check`` and by ``train``, with its line and key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.refusals import refused
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]
GRAYSCALE = {"type": "v2.Grayscale", "kwargs": {"num_output_channels": 3}}
FLIP = {"type": "torch_random_horizontal_flip"}


def settings(**given: Any) -> Callable[[Config, Path], None]:
    """A section ``to_kestrel`` with these keys."""

    def spoil(config: Config, folder: Path) -> None:
        config["to_kestrel"] = {key: str(folder / value[1:]) if value == "=file/x" else value for key, value in given.items()}

    return spoil


def transforms(*added: Config, at: int = 0) -> Callable[[Config, Path], None]:
    """A section ``to_kestrel``, and more test transforms."""

    def spoil(config: Config, folder: Path) -> None:
        config["to_kestrel"] = {"model_name": "colours"}
        config["dataset"]["test"]["dataset"]["kwargs"]["transformer"][at:at] = added

    return spoil


def bgr(config: Config, folder: Path) -> None:
    config["to_kestrel"] = {"is_rgb": True}
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["image_reader"]["kwargs"]["color_mode"] = "BGR"


def own_sizes(config: Config, folder: Path) -> None:
    """The short side alone: images keep their shape."""
    config["to_kestrel"] = {"model_name": "colours"}
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"][0]["kwargs"]["size"] = 32


def late_resize(config: Config, folder: Path) -> None:
    config["to_kestrel"] = {"model_name": "colours"}
    listed = config["dataset"]["test"]["dataset"]["kwargs"]["transformer"]
    listed.append(listed.pop(0))


def package_as_folder(config: Config, folder: Path) -> None:
    config["to_kestrel"] = {"save_to": str(folder / "x.tar")}


TRANSFORMER = "dataset.test.dataset.kwargs.transformer"
CASES: dict[str, tuple[Callable[[Config, Path], None], str, str]] = {  # what is spoiled, the key, words
    "other means": (settings(pixel_means=[123.675, 116.28, 103.53]), "to_kestrel.pixel_means", "[102.0, 102.0, 102.0]"),
    "two means": (settings(pixel_means=[102, 102]), "to_kestrel.pixel_means", "got [102.0, 102.0]"),
    "means in 0..1": (settings(pixel_means=[0.4, 0.4, 0.4]), "to_kestrel.pixel_means", "levels, 0 to 255"),
    "means that are text": (settings(pixel_means="102"), "to_kestrel.pixel_means", "got '102'"),
    "other deviations": (settings(pixel_stds=[1, 1, 1]), "to_kestrel.pixel_stds", "[76.5, 76.5, 76.5]"),
    "bgr for rgb": (settings(is_rgb=False), "to_kestrel.is_rgb", "trained on RGB"),
    "rgb for bgr": (bgr, "to_kestrel.is_rgb", "trained on BGR"),
    "another size": (settings(resize_hw="64x64"), "to_kestrel.resize_hw", "32 x 32"),
    "another size in a list": (settings(resize_hw=[32, 64]), "to_kestrel.resize_hw", "32 x 32"),
    "a size of one number": (settings(resize_hw=[32]), "to_kestrel.resize_hw", ""),
    "a size in words": (settings(resize_hw="large"), "to_kestrel.resize_hw", "32 x 32"),
    "a transform of torchvision": (transforms(GRAYSCALE), TRANSFORMER, "Grayscale"),
    "a random transform": (transforms(FLIP), TRANSFORMER, "preprocessing"),
    "images of all sizes": (own_sizes, TRANSFORMER, "torch_center_crop"),
    "resizing numbers": (late_resize, TRANSFORMER, "to_tensor"),
    "too few labels": (
        settings(class_label={"a": {"start": 0, "end": 2, "labels": ["x"]}}),
        "to_kestrel.class_label.a",
        "one label per output",
    ),
    "too few outputs": (
        settings(class_label={"a": {"start": 0, "end": 1, "labels": ["x", "y"]}}),
        "to_kestrel.class_label",
        "all 3 outputs of the net",
    ),
    "a label without its range": (settings(class_label={"a": {"labels": ["x"]}}), "to_kestrel.class_label.a", "start, end"),
    "unknown labels": (settings(support_labels=["red", "pink"]), "to_kestrel.support_labels", "pink"),
    "no version": (settings(version="1.0"), "to_kestrel.version", "1.0.0"),
    "a version that is a number": (settings(version=1.0), "to_kestrel.version", ""),
    "another kind of package": (settings(toks_type="det"), "to_kestrel.toks_type", "'det'"),
    "no plug-in": (settings(plugin=""), "to_kestrel.plugin", ""),
    "a list of plug-ins": (settings(plugin=["classifier"]), "to_kestrel.plugin", ""),
    "a name that is a path": (settings(model_name="../x"), "to_kestrel.model_name", "letters, digits"),
    "an unknown key": (settings(model="x"), "to_kestrel.model", "model_name"),
    "a folder that cannot be made": (settings(save_to="=file/x"), "to_kestrel.save_to", "file"),
    "a file for a folder": (package_as_folder, "to_kestrel.save_to", "expected a folder"),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("name", CASES)
def test_what_an_export_would_refuse(
    config: Config, write: Write, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    spoil, key, words = CASES[name]
    (tmp_path / "file").write_text("")
    spoil(config, tmp_path)
    path = write(config)
    (line,) = refused([command, "--config", path], capsys, tmp_path, images)
    found = re.match(rf"{re.escape(path)}:(\d+): {re.escape(key)}(\.\w+)*: ", line)
    assert found, line
    assert words in line
    written = Path(path).read_text().splitlines()[: int(found[1])]
    assert any(key.rpartition(".")[2] in text for text in written[-5:]), f"line {found[1]} is far from the key"


def test_all_at_once(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    settings(pixel_means=[1, 2, 3], resize_hw="8x8", support_labels=["pink"], save_to="=file/x")(config, tmp_path)
    lines = refused(["check", "--config", write(config)], capsys, tmp_path)
    keys = [line.split(": ")[1] for line in lines]
    assert keys == [f"to_kestrel.{key}" for key in ("save_to", "pixel_means", "resize_hw", "support_labels")]


@pytest.mark.parametrize("name", ["other means", "rgb for bgr", "another size", "a random transform", "a name that is a path"])
def test_without_the_data(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """``--no-files`` does not know the labels, but everything else."""
    spoil, key, _ = CASES[name]
    spoil(config, tmp_path)
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["meta_file"] = "not/there.txt"
    (line,) = refused(["check", "--no-files", "--config", write(config)], capsys, tmp_path)
    assert f": {key}: " in line
    config["to_kestrel"] = {"support_labels": ["pink"]}
    test = config["dataset"]["test"]["dataset"]["kwargs"]
    test["transformer"] = test["transformer"][-3:]
    for source in ("train", "test"):
        config["dataset"][source]["dataset"]["kwargs"]["image_reader"]["kwargs"].pop("color_mode", None)
    assert main(["check", "--no-files", "--config", write(config)]) == 0


def test_a_file_that_asks_for_no_export_is_only_warned(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"].insert(0, GRAYSCALE)
    path = write(config)
    assert main(["check", "--config", path]) == 0
    warning, verdict = capsys.readouterr().out.splitlines()[-2:]
    assert re.match(rf"warning: {re.escape(path)}:\d+: {re.escape(TRANSFORMER)}: Grayscale", warning), warning
    assert verdict.endswith(" is valid, 1 warning")
    assert main(["train", "--config", path, "--opts", "trainer.max_iter=1"]) == 0


@pytest.mark.usefixtures("each_graph_once")
def test_what_is_right_is_trained_and_exported(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The counterpart of the table: every key of it with a value that fits."""
    config["to_kestrel"] = {
        "toks_type": "cls",
        "plugin": "classifier",
        "model_name": "colours",
        "version": "1.2.3",
        "pixel_means": [102, 102, 102],
        "pixel_stds": [76.5, 76.5, 76.5],
        "is_rgb": True,
        "resize_hw": "32x32",
        "support_labels": ["r", "b"],
        "class_label": {"colour": {"calculator": "bypass", "start": 0, "end": 2, "labels": ["r", "g", "b"]}},
        "save_to": str(tmp_path / "out"),
    }
    path = write(config)
    assert main(["check", "--config", path]) == 0
    assert capsys.readouterr().out.endswith(f"OK: {path} is valid\n")
    assert main(["train", "--config", path, "--opts", "trainer.max_iter=1"]) == 0
    assert main(["to_kestrel", "--config", path]) == 0
    assert (tmp_path / "out" / "colours_1.2.3.tar").is_file()
    assert yaml.safe_load(Path(path).read_text())["to_kestrel"]["version"] == "1.2.3"
