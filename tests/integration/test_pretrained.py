"""ImagePreprocessing that weights bring, from the checkpoint of one run to the start of another."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from tests.harness.facts import tells
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.models.preprocessing import ImagePreprocessing
from up.models.pretrained import preprocessing_of

Config = dict[str, Any]
RESIZE = [{"type": "torch_resize", "kwargs": {"size": 40}}, {"type": "torch_center_crop", "kwargs": {"size": 32}}]


@pytest.fixture(scope="module")
def first(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """The configuration of a finished run, and its checkpoint."""
    folder = tmp_path_factory.mktemp("first")
    config = tiny_config(images, folder / "run")
    config["trainer"]["max_epoch"] = 1
    test = config["dataset"]["test"]["dataset"]["kwargs"]
    test["transformer"] = [*RESIZE, *test["transformer"][1:]]
    (folder / "first.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(folder / "first.yaml")]) == 0
    return config, folder / "run" / "ckpt_best.pth"


@pytest.fixture
def second(first: tuple[Config, Path], tmp_path: Path) -> Callable[[list[float]], str]:
    """Write a configuration that starts from that checkpoint and normalizes with another mean."""

    def write(mean: list[float]) -> str:
        config = copy.deepcopy(first[0])
        config["saver"] = {"save_dir": str(tmp_path / "run"), "pretrain_model": str(first[1])}
        for source in config["dataset"].values():
            source["dataset"]["kwargs"]["transformer"][-1]["kwargs"]["mean"] = mean
        (tmp_path / "second.yaml").write_text(yaml.safe_dump(config))
        return str(tmp_path / "second.yaml")

    return write


def test_a_checkpoint_carries_the_test_transforms(first: tuple[Config, Path]) -> None:
    expected = ImagePreprocessing((3, 32, 32), (0.4,) * 3, (0.3,) * 3, "bilinear", 0.8)
    assert preprocessing_of(first[1]) == expected
    assert torch.load(first[1], weights_only=True)["preprocessing"] == expected.as_record()


def test_other_transforms_are_a_warning_of_check_and_train(
    second: Callable[[list[float]], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = second([0.5, 0.4, 0.4])
    assert main(["check", "--config", path]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    (warning,) = warnings
    assert re.match(rf"warning: {re.escape(path)}:\d+: saver\.pretrain_model: ", warning)
    assert tells(warning, "ckpt_best.pth", "mean", "[0.4, 0.4, 0.4]", "[0.5, 0.4, 0.4]")
    assert "std" not in warning
    assert main(["train", "--config", path]) == 0
    assert warning.removeprefix("warning: ") in (tmp_path / "run" / "train.log").read_text()


def test_the_same_transforms_are_none(second: Callable[[list[float]], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", second([0.4, 0.4, 0.4])]) == 0
    assert "warning" not in capsys.readouterr().out


def test_grey_images_adapt_the_first_convolution(
    first: tuple[Config, Path], second: Callable[[list[float]], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of channels is that of the reader: nothing of the net is written."""
    path = Path(second([0.4, 0.4, 0.4]))
    config = yaml.safe_load(path.read_text())
    for source in config["dataset"].values():
        source["dataset"]["kwargs"]["image_reader"]["kwargs"]["color_mode"] = "GRAY"
        source["dataset"]["kwargs"]["transformer"][-1]["kwargs"] |= {"mean": [0.4], "std": [0.3]}
    path.write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(path)]) == 0
    (line,) = [line for line in (tmp_path / "run" / "train.log").read_text().splitlines() if "channels" in line]
    assert tells(line, "backbone.conv1.weight", "(8, 3, 3, 3)", "(8, 1, 3, 3)")
    found = preprocessing_of(tmp_path / "run" / "ckpt_best.pth")
    assert found is not None
    assert (found.input_size, found.mean) == ((1, 32, 32), (0.4,))
    assert main(["eval", "--config", str(path)]) == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "resized"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, "pos_embed"),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}, "relative_position_bias_table"),
    ],
)
def test_networks_of_timm_are_built_for_the_size_of_the_transforms(
    config: Config, write: Callable[[Config], str], tmp_path: Path, name: str, kwargs: Config, resized: str
) -> None:
    """From weights for images of 224 pixels; nothing about the size is written, and evaluation builds the same network."""
    torch.save(timm.create_model(name, num_classes=10, **kwargs).state_dict(), tmp_path / "w.pth")
    config["net"][0] = {"name": "backbone", "type": "timm", "kwargs": {"model_name": name, **kwargs}}
    config["saver"]["pretrain_model"] = str(tmp_path / "w.pth")
    config["trainer"] |= {"max_epoch": 1}
    path = write(config)
    assert main(["check", "--config", path]) == 0
    assert main(["train", "--config", path]) == 0
    assert tells((tmp_path / "run" / "train.log").read_text(), "resized", resized)
    assert main(["eval", "--config", path]) == 0
