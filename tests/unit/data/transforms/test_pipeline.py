"""Single images, as `up predict` reads them: what their data set would have given, by decoding no more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from up.data.bad_images import BadImage
from up.data.jpeg import extension
from up.data.readers import AutoReader, PillowReader
from up.data.records import Image as AnyImage
from up.data.transforms.pipeline import ImagePipeline
from up.data.transforms.table import CenterCrop, Resize, ToTensor

PIPELINES: dict[str, list[Any]] = {
    "centre": [Resize(size=40), CenterCrop(size=(32, 24))],
    "padded": [Resize(size=20), CenterCrop(size=32)],
    "more behind it": [Resize(size=30, interpolation="bicubic"), CenterCrop(size=24), CenterCrop(size=20)],
    "crop only": [CenterCrop(size=20)],
    "lanczos": [Resize(size=20, interpolation="lanczos")],
}


def write(folder: Path) -> list[Path]:
    """Images of several kinds and turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif, quality=80)
    Image.fromarray(pixels).save(folder / "plain.jpg", quality=80)
    Image.fromarray(pixels[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(pixels).save(folder / "lossless.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("color_mode", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("reader", [PillowReader, AutoReader])
def test_an_image_as_transform_by_transform(reader: type[PillowReader], color_mode: Any, pipeline: str, tmp_path: Path) -> None:
    class Whole(reader):  # type: ignore[valid-type, misc]
        def __call__(self, source: str | bytes, name: str | None = None) -> AnyImage:
            return super().__call__(source, name)

    transforms = [*PIPELINES[pipeline], ToTensor()]
    seen, whole = (ImagePipeline(kind(color_mode=color_mode, fast_decode=True), transforms) for kind in (reader, Whole))
    for path in write(tmp_path):
        for source in (path, path.read_bytes()):
            found, expected = seen.load(source), whole.load(source)
            assert torch.equal(found.image, expected.image), path
            assert found.size == expected.size == ((100, 70) if path.name == "turned.jpg" else (70, 100))
            assert found.filename == expected.filename == (str(path) if isinstance(source, Path) else "image")


@pytest.mark.skipif(extension() is None, reason="the extension was not compiled: no compiler")
def test_no_more_is_decoded_than_the_crop_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def part(encoded: bytes, frame: Any, box: Any, scale: int = 1) -> Any:
        decoded.append((box.width, scale))
        return real(encoded, frame, box, scale)

    from up.data import readers

    real = readers.part_of
    monkeypatch.setattr(readers, "part_of", part)
    write(tmp_path)
    sample = ImagePipeline(AutoReader(fast_decode=True), [Resize(size=20), CenterCrop(size=10), ToTensor()]).load(
        tmp_path / "plain.jpg"
    )
    assert sample.image.shape == (3, 10, 10)
    ((width, scale),) = decoded
    assert width < 60
    assert scale == 1, "fast_decode is of training alone"


def test_a_bad_image_is_named(tmp_path: Path) -> None:
    data = write(tmp_path)[2].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:-400])
    pipeline = ImagePipeline(AutoReader(), [*PIPELINES["centre"], ToTensor()])
    for source, name in ((tmp_path / "cut.jpg", str(tmp_path / "cut.jpg")), (data[:-400], "image")):
        with pytest.raises(BadImage) as raised:
            pipeline.load(source)
        assert raised.value.where == name
