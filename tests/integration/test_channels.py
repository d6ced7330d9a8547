"""Grey, deep and many-channel images from the check to a prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.facts import tells
from tests.harness.refusals import refused
from tests.harness.served import drawn_checkpoint
from up.__main__ import main
from up.bundle.package import open_package

pytestmark = pytest.mark.usefixtures("each_graph_once", "without_drawing")
Config = dict[str, Any]
Write = Callable[[Config], str]
SIDE, TRAIN, TEST = 32, 16, 8


def levels(label: int, draw: np.random.Generator, channels: int) -> np.ndarray[Any, Any]:
    """Levels of 16 bits (H, W, channels); the label is the brightest quarter of the image."""
    made = draw.integers(0, 30000, (SIDE, SIDE, channels)).astype(np.uint16)
    made[label * 8 : label * 8 + 8] += 30000
    return made


def save(kind: str, path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    if kind == "numpy":
        np.save(path.with_suffix(".npy"), pixels)
        return path.with_suffix(".npy")
    if kind == "pages":
        first, *rest = (Image.fromarray(np.ascontiguousarray(pixels[..., at])) for at in range(pixels.shape[2]))
        first.save(path.with_suffix(".tif"), save_all=True, append_images=rest)
        return path.with_suffix(".tif")
    one = pixels[..., 0] if kind == "deep" else (pixels[..., 0] >> 8).astype(np.uint8)
    Image.fromarray(one).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "grey": (1, {"type": "fs_pillow", "kwargs": {"color_mode": "GRAY"}}),
    "turbo": (1, {"type": "fs_turbo", "kwargs": {"color_mode": "GRAY"}}),
    "deep": (1, {"type": "fs_multichannel", "kwargs": {"channels": 1}}),
    "pages": (6, {"type": "fs_multichannel", "kwargs": {"channels": 6}}),
    "numpy": (6, {"type": "fs_multichannel", "kwargs": {"channels": 6}}),
}


def prepare(config: Config, kind: str, folder: Path) -> None:
    """Write folders of three classes in the form ``kind``, and let ``config`` read them."""
    channels, reader = KINDS[kind]
    draw = np.random.default_rng(0)
    for source, number in (("train", TRAIN), ("test", TEST)):
        for index in range(number):
            label = index % 3
            (folder / source / f"class{label}").mkdir(parents=True, exist_ok=True)
            save(kind, folder / source / f"class{label}" / str(index), levels(label, draw, channels))
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs |= {"meta_file": str(folder / source), "meta_type": "image_folder", "image_reader": reader}
        del kwargs["class_names"]
        statistics = {"mean": [0.3] * channels, "std": [0.2] * channels}
        kwargs["transformer"][-1] = {"type": "normalize", "kwargs": statistics}
    config["trainer"]["max_epoch"] = 2
    config["net"][0]["kwargs"]["input_channel"] = channels


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_from_the_check_to_a_prediction(
    config: Config, write: Write, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    prepare(config, kind, tmp_path / "data")
    config["trainer"]["max_epoch"] = 1
    path = write(config)
    assert main(["check", "--config", path]) == 0
    assert main(["train", "--config", path]) == 0
    weights = torch.load(run / "ckpt_latest.pth", weights_only=False)["model"]
    assert next(tensor for tensor in weights.values() if tensor.ndim == 4).shape[1] == KINDS[kind][0]
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"eval"' in line][-1:]
    capsys.readouterr()
    assert main(["eval", "--config", path, "--ckpt", str(run / "ckpt_latest.pth")]) == 0
    assert f"{record['top1']:.2f}" in capsys.readouterr().out
    image = sorted((tmp_path / "data" / "test" / "class0").iterdir())[0]
    assert main(["predict", str(image), "--config", path, "--ckpt", str(run / "ckpt_latest.pth"), "--format", "json"]) == 0
    assert "class" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["grey", "numpy"])
def test_operations_are_counted_for_their_channels(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    prepare(config, kind, tmp_path / "data")
    assert main(["flops", write(config)]) == 0
    assert f"{KINDS[kind][0]}x{SIDE}x{SIDE}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "train"])
def test_means_of_three_channels_for_grey_images(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    prepare(config, "grey", tmp_path / "data")
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"][-1]["kwargs"] = {"mean": [0.3] * 3, "std": [0.2] * 3}
    (line,) = refused([command, "--config", write(config)], capsys, tmp_path)
    assert tells(line, "config.yaml:", "dataset.train.dataset.kwargs.transformer.3.kwargs.mean", "3", "1", "channel")


def test_a_network_for_three_channels(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(config, "deep", tmp_path / "data")
    config["net"][0]["kwargs"]["input_channel"] = 3
    (line,) = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert tells(line, "3 channels", "1", "input_channel")


def test_a_file_of_other_channels(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(config, "deep", tmp_path / "data")
    first = sorted((tmp_path / "data" / "train" / "class0").iterdir())[0]
    Image.new("RGB", (SIDE, SIDE)).save(first)
    (line,) = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert tells(line, str(first), "3 channels", "1")


def test_colour_transforms_of_many_channels(
    config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config, "numpy", tmp_path / "data")
    transformer = config["dataset"]["train"]["dataset"]["kwargs"]["transformer"]
    transformer.insert(1, {"type": "torch_color_jitter", "kwargs": {"saturation": 0.5}})
    (line,) = refused(["check", "--config", write(config)], capsys, tmp_path)
    assert tells(line, "ColorJitter", "channel")


@pytest.mark.parametrize("kind", ["deep", "pages", "numpy"])
def test_views_of_them(config: Config, write: Write, run: Path, tmp_path: Path, kind: str) -> None:
    """Flips and blur work on floats of any number of channels, and AugMix on those of one."""
    prepare(config, kind, tmp_path / "data")
    config["net"][-1]["kwargs"]["cls_loss"] = {"type": "jsd"}
    config["trainer"]["max_epoch"] = 1
    blur = {"type": "v2.GaussianBlur", "kwargs": {"kernel_size": 3}}
    flip = {"type": "torch_random_horizontal_flip", "kwargs": {"p": 1.0}}
    augmentations = [{"type": "v2.AugMix"}] if kind == "deep" else [flip, blur]
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"][-2:-2] = [
        {"type": "views", "kwargs": {"transformer": augmentations, "number": 3}}
    ]
    path = write(config)
    assert main(["check", "--config", path]) == 0
    assert main(["train", "--config", path]) == 0
    weights = torch.load(run / "ckpt_latest.pth", weights_only=True)["model"]
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_package_of_them(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """The package predicts as the checkpoint does, of files of other sizes, without torch, and verifies itself."""
    prepare(config, kind, tmp_path / "data")
    channels = KINDS[kind][0]
    resize = {"type": "torch_resize", "kwargs": {"size": 36, "interpolation": "bicubic"}}
    crop = {"type": "torch_center_crop", "kwargs": {"size": SIDE}}
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"][:1] = [resize, crop]
    path = write(config)
    ckpt = str(
        drawn_checkpoint(Path(path), tmp_path / "ckpt.pth", ["class0", "class1", "class2"])
    )  # one graph for all of a channel
    assert main(["to_kestrel", "--config", path, "--ckpt", ckpt, "--save-to", str(tmp_path / "out")]) == 0
    assert tells(capsys.readouterr().out, "note", "Kestrel")
    (package,) = (tmp_path / "out").glob("*.tar")
    assert main(["verify", str(package), "--meta", str(tmp_path / "data" / "test")]) == 0
    opened = open_package(package)
    assert opened.manifest.inputs[0].shape == ("N", channels, SIDE, SIDE)
    assert (opened.manifest.inputs[0].channel_order == "GRAY") == (kind in ("grey", "turbo"))
    assert not {"meta.json", "parameters.json"} & opened.members.keys()
    draw = np.random.default_rng(1)
    shaped = [draw.integers(0, 65536, (height, width, channels)).astype(np.uint16) for height, width in ((50, 70), (33, 41))]
    (tmp_path / "new").mkdir()
    for at, pixels in enumerate(shaped):
        save(kind, tmp_path / "new" / f"{at}", pixels)
    if kind in ("grey", "turbo"):
        np.save(tmp_path / "new" / "other.npy", shaped[0])  # no image for this reader
    without = "import sys; sys.modules['torch'] = None; from up.__main__ import main; sys.exit(main(sys.argv[1:]))"
    words = ["predict", str(tmp_path / "new"), "--format", "json", "--topk", "3"]
    capsys.readouterr()
    assert main([*words, "--config", path, "--ckpt", ckpt]) == 0
    of_checkpoint = json.loads(capsys.readouterr().out)
    bundle = [*words, "--bundle", str(package), "--vis-dir", str(tmp_path / "drawn")]
    said = subprocess.run([sys.executable, "-c", without, *bundle], capture_output=True, text=True, check=True)
    assert len(of_checkpoint) == len(shaped)
    for ours, theirs in zip(json.loads(said.stdout), of_checkpoint, strict=True):
        scores = [{each["label"]: each["score"] for each in one["predictions"]} for one in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5 if KINDS[kind][1]["type"] == "fs_multichannel" else 5e-3)
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    (line,) = refused(["to_kestrel", "--strict-kestrel", "--config", path, "--ckpt", ckpt], capsys, tmp_path / "out")
    assert tells(line, "--strict-kestrel", "RGB")
