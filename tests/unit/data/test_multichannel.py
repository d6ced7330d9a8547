"""Images of one channel, of many and of more than 8 bits, with Pillow and numpy as oracles."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from tests.harness.facts import tells
from tests.harness.images import MIXED, encoded, picture, turned
from up.data.bad_images import BadImage
from up.data.decoding import read_rgb
from up.data.multichannel import MultiChannelReader
from up.data.readers import PillowReader, TurboReader
from up.data.records import Batch
from up.data.transforms.image import applied
from up.data.transforms.occlusion import Cutout
from up.data.transforms.policies import AutoAugment
from up.data.transforms.stages import expect_channels, split
from up.data.transforms.table import ColorJitter, LevelsToTensor, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
from up.errors import UserError

DEEP = np.random.default_rng(0).integers(0, 65536, (7, 5)).astype(np.uint16)
COLOURS = np.random.default_rng(1).integers(0, 65536, (6, 4, 3)).astype(np.uint16)
CUBE = np.random.default_rng(2).integers(0, 256, (8, 9, 5)).astype(np.uint8)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def deep_png(array: np.ndarray[Any, Any]) -> bytes:
    """A PNG of three channels of 16 bits, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pages(*arrays: np.ndarray[Any, Any]) -> bytes:
    first, *rest = map(Image.fromarray, arrays)
    return encoded(first, "TIFF", save_all=True, append_images=rest)


def without_width(tiff: bytes) -> bytes:
    """A TIFF whose last page does not say how wide it is."""
    before, tag, after = tiff.rpartition(b"\0\1\4\0\1\0\0\0")  # width, a number of 4 bytes, one
    assert tag
    return before + b"\1" + tag[1:] + after


class TestGrey:
    @pytest.mark.parametrize("kind", sorted(MIXED))
    @pytest.mark.parametrize("reader", [PillowReader, TurboReader])
    def test_one_channel_as_pillow_converts_it(self, kind: str, reader: type[PillowReader]) -> None:
        data = MIXED[kind]()
        found = reader(color_mode="GRAY")(data)
        assert isinstance(found, torch.Tensor)
        assert (found.dtype, found.shape[0]) == (torch.uint8, 1)
        assert np.array_equal(found[0].numpy(), np.asarray(read_rgb(data).convert("L")))

    def test_a_grey_image_keeps_its_levels(self) -> None:
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
        found = PillowReader(color_mode="GRAY")(encoded(Image.fromarray(levels), "PNG"))
        assert np.array_equal(np.asarray(found)[0], levels)

    def test_the_default_reader_repeats_grey_and_keeps_the_high_byte(self) -> None:
        rgb = np.asarray(PillowReader()(encoded(Image.fromarray(DEEP), "PNG")))
        assert np.array_equal(rgb, np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, axis=2))
        assert np.array_equal(np.asarray(PillowReader()(encoded(Image.fromarray(DEEP), "TIFF"))), rgb)
        assert np.array_equal(np.asarray(PillowReader()(deep_png(COLOURS))), (COLOURS >> 8).astype(np.uint8))

    @pytest.mark.parametrize("levels", [DEEP.astype(np.int32) * 100, DEEP.astype(np.float32)], ids=["32 bits", "floats"])
    def test_pixels_without_a_range_are_bad(self, levels: np.ndarray[Any, Any]) -> None:
        with pytest.raises(BadImage) as raised:
            PillowReader()(encoded(Image.fromarray(levels), "TIFF"))
        assert tells(str(raised.value), "range", "16 bits")


class TestManyChannels:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (encoded(Image.fromarray(DEEP), "PNG"), DEEP[None] / 65535),
            (encoded(Image.fromarray(DEEP), "TIFF"), DEEP[None] / 65535),
            (encoded(Image.fromarray((DEEP >> 8).astype(np.uint8)), "PNG"), (DEEP >> 8)[None] / 255),
            (deep_png(COLOURS), np.moveaxis(COLOURS, -1, 0) / 65535),
            (encoded(picture(9, 8, "RGBA"), "PNG"), np.moveaxis(np.asarray(picture(9, 8, "RGBA")), -1, 0) / 255),
            (pages(DEEP, DEEP[::-1], DEEP // 2, DEEP, DEEP), np.stack([DEEP, DEEP[::-1], DEEP // 2, DEEP, DEEP]) / 65535),
            (npy(CUBE), np.moveaxis(CUBE, -1, 0) / 255),
            (npy(np.moveaxis(CUBE, -1, 0)), np.moveaxis(CUBE, -1, 0) / 255),
            (npy(CUBE.astype(np.uint16) * 7), np.moveaxis(CUBE * 7.0, -1, 0) / 65535),
            (npy(CUBE.astype(np.float64) - 3), np.moveaxis(CUBE, -1, 0) - 3.0),
            (npy(DEEP), DEEP[None] / 65535),
            (npy(DEEP.astype(">u2")), DEEP[None] / 65535),
            (encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), DEEP[None].astype(np.float64)),
            (encoded(Image.fromarray(DEEP), "PNG", **turned(6)), np.rot90(DEEP, -1)[None] / 65535),
        ],
        ids=[
            "png16",
            "tiff16",
            "png8",
            "rgb16",
            "rgba",
            "pages",
            "hwc",
            "chw",
            "uint16",
            "floats",
            "hw",
            "big-endian",
            "tiff float",
            "turned",
        ],
    )
    def test_levels_as_in_the_file(self, data: bytes, expected: np.ndarray[Any, Any]) -> None:
        found = MultiChannelReader(channels=len(expected))(data)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)

    def test_twelve_bits(self) -> None:
        found = MultiChannelReader(channels=1, max_level=4095)(encoded(Image.fromarray(DEEP // 16), "PNG"))
        np.testing.assert_allclose(found.numpy()[0], (DEEP // 16) / 4095, rtol=1e-6)
        assert found.max() <= 1

    @pytest.mark.parametrize(
        ("data", "channels", "said"),
        [
            (encoded(picture(9, 8), "PNG"), 1, ("3 channels", "1", "channels")),
            (encoded(picture(9, 8, "L"), "PNG"), 3, ("1 channel", "3")),
            (pages(DEEP, DEEP), 5, ("2 pages", "5")),
            (pages(DEEP, DEEP[:4]), 2, ("sizes",)),
            (npy(CUBE), 4, ("(8, 9, 5)", "(H, W, 4)")),
            (npy(CUBE.astype(np.int64)), 5, ("int64", "uint16")),
            (npy(np.full((2, 3), np.nan)), 1, ("finite",)),
            (npy(CUBE)[:150], 5, ("damaged", ".npy")),
            (npy(np.array([{}], dtype=object)), 1, ("damaged", ".npy")),
            (npy(CUBE).replace(b"}", b" "), 5, ("damaged", ".npy")),
            (npy(CUBE).replace(b"(8, 9", b"(Tr, "), 5, ("damaged", ".npy")),
            (npy(CUBE).replace(b"9, 5)", b"9**9)"), 5, ("damaged", ".npy")),
            (npy(CUBE).replace(b"(8, 9, 5), }        ", b"(8000000, 90000, 5)}"), 5, ("damaged", ".npy", "3,600,000,000,000")),
            (npy(np.full((2, 3), 1e39)), 1, ("finite",)),
            (without_width(pages(DEEP, DEEP)), 2, ("damaged", "TIFF")),
            (encoded(Image.fromarray(DEEP), "PNG")[:60], 1, ("PNG",)),
            (b"text", 1, ("not an image",)),
            (b"", 1, ("0 bytes",)),
        ],
    )
    def test_bad_images(self, data: bytes, channels: int, said: tuple[str, ...], tmp_path: Path) -> None:
        path = tmp_path / "image.bin"
        path.write_bytes(data)
        with pytest.raises(BadImage) as raised:
            MultiChannelReader(channels=channels)(str(path), "list.txt:3: image.bin")
        assert tells(str(raised.value), "list.txt:3: image.bin", *said)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_turned_once(self, form: str, orientation: int) -> None:
        """Pillow itself turns a TIFF when it decodes it."""
        data = encoded(Image.fromarray(DEEP), form, **turned(orientation))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        found = MultiChannelReader(channels=1, max_level=1)(data)
        np.testing.assert_array_equal(found.numpy()[0], np.asarray(upright))

    def test_an_array_of_more_pixels_than_allowed(self) -> None:
        assert MultiChannelReader(channels=5, max_pixels=72)(npy(CUBE)).shape == (5, 8, 9)
        with pytest.raises(BadImage) as raised:
            MultiChannelReader(channels=5, max_pixels=71)(npy(CUBE))
        assert tells(str(raised.value), "9 x 8", "max_pixels", "71")

    def test_no_channels(self) -> None:
        with pytest.raises(UserError, match="channels"):
            MultiChannelReader(channels=0)


class TestTransforms:
    @pytest.mark.parametrize("to_tensor", [ToTensor(), LevelsToTensor()])
    def test_floats_are_normalised_alone_and_in_a_batch(self, to_tensor: ToTensor) -> None:
        image = MultiChannelReader(channels=5)(npy(CUBE))
        mean, std = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.5, 0.4, 0.3, 0.2, 0.1])
        normalize = Normalize(mean=tuple(mean * to_tensor.top), std=tuple(std * to_tensor.top))
        listed: list[Any] = [RandomHorizontalFlip(p=1.0), to_tensor, normalize]
        found: Any = image
        for transform in listed:
            found, _ = applied(transform, found, {}, "x")
        expected = (np.moveaxis(CUBE[:, ::-1], -1, 0) / 255 - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
        stages = split(listed, of_floats=True)
        assert stages.worker == listed[:1]
        assert stages.device is not None
        flipped = image.flip(2)[None]
        batch = stages.device(Batch(image=flipped, seed=torch.arange(1), filename=["x"]))
        assert torch.equal(batch.image[0], found)
        assert torch.equal(flipped[0], image.flip(2))

    def test_levels_to_tensor_scales_floats(self) -> None:
        image = torch.rand(2, 3, 3)
        assert torch.equal(LevelsToTensor()(image), image * 255)
        assert torch.equal(ToTensor()(image), image)

    def test_to_tensor_twice(self) -> None:
        with pytest.raises(UserError, match="to_tensor"):
            split([ToTensor(), ToTensor()])

    @pytest.mark.parametrize(
        ("transforms", "channels", "at"),
        [
            ([ToTensor(), Normalize(mean=(0.5,) * 3, std=(0.5,) * 3)], 1, 1),
            ([ToTensor(), Normalize(mean=(0.5,), std=(0.5,))], 3, 1),
            ([v2.Grayscale(), ToTensor(), Normalize(mean=(0.5,) * 3, std=(0.5,) * 3)], 3, 2),
            ([v2.RGB(), ToTensor(), Normalize(mean=(0.5,), std=(0.5,))], 1, 2),
        ],
    )
    def test_means_of_other_channels(self, transforms: list[Any], channels: int, at: int) -> None:
        with pytest.raises(UserError) as raised:
            expect_channels(transforms, channels)
        assert raised.value.problems[0].key == f"transformer.{at}.kwargs.mean"
        expect_channels(transforms[-1:], None)
        with pytest.raises(UserError, match="std"):
            Normalize(mean=(0.5,), std=(0.5, 0.5))

    @pytest.mark.parametrize("channels", [1, 3, 5])
    def test_geometry_keeps_channels(self, channels: int) -> None:
        image = torch.rand(channels, 40, 50)
        found, _ = applied(RandomResizedCrop(size=32), image, {}, "x")
        assert found.shape == (channels, 32, 32)  # type: ignore[union-attr]
        assert Cutout(length=8)(image).shape == image.shape  # type: ignore[union-attr]

    def test_hidden_parts_of_a_grey_image_are_grey(self) -> None:
        hidden = Cutout(length=400)(torch.zeros(1, 9, 9, dtype=torch.uint8))
        assert torch.equal(hidden, torch.full((1, 9, 9), 117, dtype=torch.uint8))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("transform", "image"), [(ColorJitter(saturation=(2.0, 2.0)), torch.rand(5, 8, 8)), (AutoAugment(), torch.rand(1, 8, 8))]
    )
    def test_transforms_for_colours_are_one_line(self, transform: Any, image: torch.Tensor) -> None:
        with pytest.raises(UserError) as raised:
            applied(transform, image, {}, "scan.npy")
        assert len(str(raised.value).splitlines()) == 1
