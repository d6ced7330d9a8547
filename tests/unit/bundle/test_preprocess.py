from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from tests.harness.facts import facts
from tests.harness.images import MIXED, encoded, picture, turned
from up.bundle.operations import Operation, ResizeOperation, input_size_of, pixel_affine
from up.bundle.preprocess import Preprocessing
from up.data.bad_images import BadImage
from up.data.collate import collate
from up.data.readers import PillowReader
from up.data.transforms.pipeline import ImagePipeline
from up.data.transforms.table import CenterCrop, Denormalize, LevelsToTensor, Normalize, ToTensor
from up.data.transforms.table import Resize as TrainResize
from up.tasks.served import preprocessing_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
END: list[Any] = [ToTensor(), Normalize(mean=MEAN, std=STD)]
OPERATIONS = TypeAdapter(list[Operation])


PIPELINES: dict[str, list[Any]] = {
    "short side and crop": [TrainResize(size=36), CenterCrop(size=32), *END],
    "exact": [TrainResize(size=(28, 36), interpolation="bicubic"), *END],
    "lanczos": [TrainResize(size=(32, 32), interpolation="lanczos"), *END],
    "nearest": [TrainResize(size=(32, 32), interpolation="nearest"), *END],
    "crop only": [CenterCrop(size=(45, 50)), *END],
    "levels": [TrainResize(size=(32, 32)), LevelsToTensor(), Normalize(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0))],
    "no normalize": [TrainResize(size=(32, 32)), ToTensor()],
}
UNDONE: list[Any] = [TrainResize(size=(32, 32)), *END, Denormalize(mean=MEAN, std=STD)]


def both(
    transforms: list[Any], source: bytes, tmp_path: Path, color: Any = "RGB", background: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """What training feeds its net, and what a package makes of the same file."""
    path = tmp_path / "image"
    path.write_bytes(source)
    pipeline = ImagePipeline(PillowReader(color_mode=color, background=background or "drop"), transforms)
    trained = pipeline.finish(collate([pipeline.load(path)]), torch.device("cpu")).image[0]
    operations = preprocessing_of(PillowReader(color_mode=color, background=background or "drop"), transforms)
    size = input_size_of(operations)
    assert size is not None
    return trained.numpy(), Preprocessing(operations, size)(path)


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("name", PIPELINES)
def test_equal_to_training_in_every_bit(name: str, kind: str, tmp_path: Path) -> None:
    trained, packaged = both(PIPELINES[name], MIXED[kind](), tmp_path)
    assert packaged.dtype == np.float32
    assert np.array_equal(trained, packaged)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", ["rgba", "palette", "jpeg", "deep"])
def test_a_background_as_in_training(kind: str, color: str, tmp_path: Path) -> None:
    source, transforms = MIXED[kind](), PIPELINES["short side and crop"]
    trained, packaged = both(transforms, source, tmp_path, color, background=(255, 10, 90))
    assert np.array_equal(trained, packaged)
    dropped, _ = both(transforms, source, tmp_path, color)
    assert np.array_equal(trained, dropped) == (kind in ("jpeg", "deep")), "only what is transparent shows the background"


def test_an_alpha_of_a_manifest() -> None:
    """Drop is the default, and reads as older packages have it; a background belongs to ``composite`` alone."""
    (alpha,) = OPERATIONS.validate_json('[{"op": "alpha"}]')
    assert alpha.model_dump() == {"op": "alpha", "mode": "drop"}
    assert OPERATIONS.validate_json('[{"op": "alpha", "mode": "composite", "background": [1, 2, 3]}]')
    for wrong in ('"mode": "composite"', '"background": [1, 2, 3]', '"mode": "composite", "background": [1, 2, 256]'):
        with pytest.raises(ValueError, match=r"composite|255"):
            OPERATIONS.validate_json(f'[{{"op": "alpha", {wrong}}}]')


def test_a_normalize_that_is_undone(tmp_path: Path) -> None:
    """Training multiplies and adds where the package subtracts and divides: equal but for the last bit."""
    trained, packaged = both(UNDONE, MIXED["jpeg"](), tmp_path)
    assert np.abs(trained - packaged).max() <= 1.2e-7


def test_channels_of_a_net_trained_on_bgr(tmp_path: Path) -> None:
    source = MIXED["rgba"]()
    trained, packaged = both(PIPELINES["short side and crop"], source, tmp_path, color="BGR")
    assert np.array_equal(trained, packaged)
    assert not np.array_equal(packaged, both(PIPELINES["short side and crop"], source, tmp_path)[1])


def made(*operations: dict[str, Any], size: tuple[int, int] = (32, 32)) -> Preprocessing:
    plain = [{"op": "decode", "color": "RGB", "max_pixels": 5000}, *operations, {"op": "to_float", "divide_by": 255.0}]
    return Preprocessing(OPERATIONS.validate_python(plain), size)


EXACT = {"op": "resize", "mode": "exact", "size": [32, 32], "interpolation": "bilinear", "antialias": True}


def test_all_ways_to_give_an_image(tmp_path: Path) -> None:
    data = encoded(picture(50, 40), "PNG", **turned(3))
    (tmp_path / "a.png").write_bytes(data)
    of_file = made(EXACT)(tmp_path / "a.png")
    upright = np.rot90(np.asarray(picture(50, 40)), 2)
    for source in (str(tmp_path / "a.png"), data, Image.open(io.BytesIO(data)), upright):
        assert np.array_equal(made(EXACT)(source), of_file)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(encoded(picture(100, 100), "PNG"))
    with pytest.raises(BadImage, match=facts("b.png", "100", "=", "10,000", "max_pixels", "5,000")):
        made(EXACT)(tmp_path / "b.png")
    with pytest.raises(BadImage, match=facts("float64", "3", "4")):
        made(EXACT)(np.zeros((3, 4)))  # type: ignore[arg-type]
    short_side = {**EXACT, "mode": "short_side", "size": 32}
    with pytest.raises(BadImage, match=facts("40", "32")):
        made(short_side)(encoded(picture(50, 40), "PNG"))


def test_an_image_that_would_grow_beyond_the_memory() -> None:
    short_side = {**EXACT, "mode": "short_side", "size": 256}
    narrow = encoded(Image.new("RGB", (1, 4000)), "PNG")
    with pytest.raises(BadImage, match=facts("1", "4,000", "256", "1,024,000")):
        made(short_side)(narrow)


@pytest.mark.parametrize(("height", "width"), [(47, 61), (61, 47), (1, 999), (333, 500), (500, 375)])
def test_the_longer_side_is_rounded_as_torchvision_does(height: int, width: int) -> None:
    from torchvision.transforms.v2.functional import resize

    op = ResizeOperation(mode="short_side", size=37, interpolation="bilinear", antialias=True)
    expected = resize(Image.new("RGB", (width, height)), [37]).size[::-1]
    assert op.output_size(height, width) == expected


def test_pixel_affine_composes() -> None:
    ops = preprocessing_of(PillowReader(), END)
    mean, std = pixel_affine(ops)
    assert mean == pytest.approx([123.675, 116.28, 103.53])
    assert std == pytest.approx([58.395, 57.12, 57.375])
    mean, std = pixel_affine(preprocessing_of(PillowReader(), UNDONE[1:]))
    assert mean == pytest.approx([0, 0, 0], abs=1e-9)
    assert std == pytest.approx([255, 255, 255])
