"""Images of every format and form, by both readers, and files that are no images."""

from __future__ import annotations

import io
import os
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.facts import facts, tells
from tests.harness.images import MIXED
from up.config.parts import build_part
from up.data.bad_images import BadImage
from up.data.decoding import Header, header_of
from up.data.readers import MAX_PIXELS, READERS, OpenCVReader, PillowReader, TurboReader
from up.errors import UserError

ROWS, COLUMNS = np.mgrid[0:24, 0:32]
RGB = np.stack([COLUMNS * 8, ROWS * 10, (COLUMNS + ROWS) * 4], axis=-1).astype(np.uint8)
GREY = RGB[..., 0]
PICTURE = Image.fromarray(RGB)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read_both(data: bytes) -> np.ndarray:
    """The pixels (H, W, 3) by Pillow, after a check that the other reader sees the same."""
    picture, pixels = PillowReader()(data), TurboReader()(data)
    assert picture.mode == "RGB"
    assert pixels.dtype == torch.uint8
    by_pillow = np.asarray(picture)
    assert np.array_equal(by_pillow, pixels.permute(1, 2, 0))
    return by_pillow


def palette_with_alpha() -> bytes:
    image = PICTURE.quantize(16)
    return encoded(image, "PNG", transparency=bytes([0, 128] + [255] * 14))


def rotated_by_exif(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PICTURE, format, exif=exif, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))


def animation() -> bytes:
    frames = [PICTURE.quantize(64), Image.new("P", PICTURE.size, 3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats(format: str) -> None:
    assert np.array_equal(read_both(encoded(PICTURE, format)), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_jpeg(options: dict[str, Any]) -> None:
    pixels = read_both(encoded(PICTURE, "JPEG", **options))
    assert pixels.shape == (24, 32, 3)
    assert np.abs(pixels.astype(int) - RGB).mean() < 6


def test_grey() -> None:
    assert np.array_equal(read_both(encoded(Image.fromarray(GREY), "PNG")), np.repeat(GREY[..., None], 3, axis=2))
    assert read_both(encoded(Image.fromarray(GREY), "JPEG")).shape == (24, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(mode: str) -> None:
    colours = PICTURE.convert("L") if mode == "LA" else PICTURE
    image = colours.copy()
    image.putalpha(Image.fromarray((ROWS * 10).astype(np.uint8)))
    assert image.mode == mode
    assert np.array_equal(read_both(encoded(image, "PNG")), np.asarray(colours.convert("RGB")))


def test_palette_with_transparency() -> None:
    assert np.array_equal(read_both(palette_with_alpha()), np.asarray(PICTURE.quantize(16).convert("RGB")))


def composited(data: bytes, background: Any) -> np.ndarray:
    """The pixels (H, W, 3) over a background, after a check that all readers give the same."""
    picture, pixels = PillowReader(background=background)(data), TurboReader(background=background)(data)
    assert np.array_equal(np.asarray(picture), pixels.permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(picture), np.asarray(OpenCVReader(background=background)(data)))
    return np.asarray(picture)


def over(rgba: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Pillow's own compositing."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, colour), rgba))[..., :3]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_transparency_over_a_background(mode: str, format: str) -> None:
    if (mode, format) == ("LA", "WEBP"):
        pytest.skip("WebP has no grey")
    image = (PICTURE.convert("L") if mode == "LA" else PICTURE).copy()
    image.putalpha(Image.fromarray((ROWS * 10).astype(np.uint8)))
    data = encoded(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert np.array_equal(composited(data, "white"), over(image.convert("RGBA"), (255, 255, 255)))
    assert np.array_equal(composited(data, (9, 80, 200)), over(image.convert("RGBA"), (9, 80, 200)))
    assert np.array_equal(composited(data, "drop"), read_both(data))


def test_a_palette_over_a_background() -> None:
    assert np.array_equal(
        composited(palette_with_alpha(), "white"),
        over(Image.open(io.BytesIO(palette_with_alpha())).convert("RGBA"), (255, 255, 255)),
    )


def png(depth: int, kind: int, row: bytes, width: int, transparent: bytes = b"", palette: bytes = b"") -> bytes:
    """A PNG of one row, written by hand: Pillow writes few of these forms."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) if data else b""

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    colours = chunk(b"PLTE", palette) + chunk(b"tRNS", transparent)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + header + colours + chunk(b"IDAT", zlib.compress(b"\0" + row)) + end


def deep(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


GOLDEN: dict[str, tuple[bytes, list[list[int]], list[list[int]]]] = {  # the file, dropped, over [255, 0, 100]
    "rgba": (
        png(8, 6, bytes([10, 20, 30, 0, 10, 20, 30, 51, 10, 20, 30, 255]), 3),
        [[10, 20, 30]] * 3,
        [[255, 0, 100], [206, 4, 86], [10, 20, 30]],
    ),
    "la": (png(8, 4, bytes([40, 0, 40, 102, 40, 255]), 3), [[40] * 3] * 3, [[255, 0, 100], [169, 16, 76], [40] * 3]),
    "rgba, 16 bits": (
        png(16, 6, deep(0x0AFF, 0x14FF, 0x1EFF, 0x33FF, 0x0A00, 0x1400, 0x1E00, 0), 2),
        [[10, 20, 30]] * 2,
        [[206, 4, 86], [255, 0, 100]],
    ),
    "la, 16 bits": (png(16, 4, deep(0x28FF, 0x66FF, 0x2800, 0xFFFF), 2), [[40] * 3] * 2, [[169, 16, 76], [40] * 3]),
    "palette": (
        png(8, 3, bytes([0, 1, 2]), 3, bytes([51, 0]), bytes([10, 20, 30, 1, 2, 3, 7, 8, 9])),
        [[10, 20, 30], [1, 2, 3], [7, 8, 9]],
        [[206, 4, 86], [255, 0, 100], [7, 8, 9]],
    ),
    "a transparent colour": (
        png(8, 2, bytes([1, 2, 3, 1, 2, 4]), 2, deep(1, 2, 3)),
        [[1, 2, 3], [1, 2, 4]],
        [[255, 0, 100], [1, 2, 4]],
    ),
    "a transparent colour, 16 bits": (
        png(16, 2, deep(0x102, 0x203, 0x304, 0x900, 0x203, 0x304), 2, deep(0x102, 0x203, 0x304)),
        [[1, 2, 3], [9, 2, 3]],
        [[255, 0, 100], [9, 2, 3]],
    ),
    "a transparent level": (png(8, 0, bytes([5, 6]), 2, deep(5)), [[5] * 3, [6] * 3], [[255, 0, 100], [6] * 3]),
    "a transparent level, 16 bits": (png(16, 0, deep(0x0501, 0x0502), 2, deep(0x0501)), [[5] * 3] * 2, [[255, 0, 100], [5] * 3]),
    "a transparent level, 4 bits": (png(4, 0, bytes([0x5A]), 2, deep(5)), [[85] * 3, [170] * 3], [[255, 0, 100], [170] * 3]),
    "a transparent level, 2 bits": (png(2, 0, bytes([0x60]), 2, deep(1)), [[85] * 3, [170] * 3], [[255, 0, 100], [170] * 3]),
    "a transparent level, 1 bit": (png(1, 0, bytes([0x80]), 2, deep(1)), [[255] * 3, [0] * 3], [[255, 0, 100], [0] * 3]),
}


@pytest.mark.parametrize("form", GOLDEN)
def test_golden_pixels_of_every_form_of_transparency(form: str) -> None:
    data, dropped, laid_over = GOLDEN[form]
    assert composited(data, "drop").tolist() == [dropped]
    assert composited(data, (255, 0, 100)).tolist() == [laid_over]


def test_background_is_rgb_and_the_exif_turn_applies() -> None:
    image = PICTURE.copy()
    image.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, "PNG", exif=exif)
    assert composited(data, (1, 2, 3)).shape == (32, 24, 3)
    assert (np.asarray(PillowReader(background=(1, 2, 3), color_mode="BGR")(data)) == (3, 2, 1)).all()
    assert np.array_equal(composited(encoded(PICTURE, "PNG"), "white"), RGB), "an opaque image has no use for a background"


@pytest.mark.parametrize("background", ["black", [1, 2], [1, 2, 256], [0.5, 0, 0], 3])
def test_a_background_that_is_no_colour(background: Any) -> None:
    part = {"type": "fs_pillow", "kwargs": {"background": background}}
    with pytest.raises(UserError, match="background"):
        build_part(part, "image_reader", {"image_reader": READERS})


def test_headers_say_who_has_alpha(tmp_path: Path) -> None:
    transparent, opaque = PICTURE.copy(), tmp_path / "opaque.png"
    transparent.putalpha(9)
    opaque.write_bytes(encoded(PICTURE, "PNG"))
    found = {}
    for name, (data, *_) in {**GOLDEN, "tiff": (encoded(transparent, "TIFF"),)}.items():
        (tmp_path / name).write_bytes(data)
        found[name] = header_of(str(tmp_path / name)).has_alpha
    assert found == dict.fromkeys(found, True)
    assert [header_of(str(path)) for path in (opaque, tmp_path, tmp_path / "missing.png")] == [Header()] * 3
    (tmp_path / "deep").write_bytes(MIXED["deep"]())
    assert header_of(str(tmp_path / "deep")) == Header(is_deep=True)


def test_the_same_image_gives_a_net_other_numbers_raw_and_flattened() -> None:
    """Files of one picture, transparent and flattened on white: equal to the eye, far apart as inputs unless composited."""
    shape = Image.fromarray(np.where((ROWS - 12) ** 2 + (COLUMNS - 16) ** 2 < 60, 255, 0).astype(np.uint8))
    raw = Image.new("RGBA", shape.size, (200, 30, 30, 0))
    raw.putalpha(shape)
    flattened = encoded(Image.fromarray(over(raw, (255, 255, 255))), "PNG")
    seen = {name: composited(encoded(raw, "PNG"), name).astype(float) for name in ("drop", "white")}
    assert np.abs(seen["drop"] - composited(flattened, "drop")).mean() > 50
    assert np.array_equal(seen["white"], composited(flattened, "drop"))


def test_cmyk() -> None:
    expected = np.asarray(PICTURE.convert("CMYK").convert("RGB"))
    pixels = read_both(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(pixels.astype(int) - expected).mean() < 4


def test_one_bit() -> None:
    bits = np.where(GREY > 100, 255, 0).astype(np.uint8)
    pixels = read_both(encoded(Image.fromarray(bits).convert("1"), "PNG"))
    assert np.array_equal(pixels, np.repeat(bits[..., None], 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(format: str) -> None:
    deep = (GREY.astype(np.uint16) << 8) + 77
    pixels = read_both(encoded(Image.fromarray(deep), format))
    assert np.array_equal(pixels, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a.swapaxes(0, 1), 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(format: str, orientation: int, upright: Callable[[Any], Any]) -> None:
    expected = upright(RGB if format == "PNG" else read_both(rotated_by_exif(1, format)))
    pixels = read_both(rotated_by_exif(orientation, format))
    assert pixels.shape == expected.shape
    assert np.array_equal(pixels, expected)


def test_broken_exif_does_no_harm() -> None:
    data = encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    assert read_both(data).shape == (24, 32, 3)


def test_one_pixel_and_first_frame() -> None:
    assert read_both(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).tolist() == [[[9, 8, 7]]]
    assert read_both(encoded(Image.new("RGB", (1, 1), (90, 80, 70)), "JPEG")).shape == (1, 1, 3)
    assert np.array_equal(read_both(animation()), np.asarray(PICTURE.quantize(64).convert("RGB")))


def test_bgr_swaps_the_channels() -> None:
    data = encoded(PICTURE, "PNG")
    assert np.array_equal(np.asarray(PillowReader(color_mode="BGR")(data)), RGB[..., ::-1])
    turbo = TurboReader(color_mode="BGR")
    assert np.array_equal(turbo(data).permute(1, 2, 0).numpy(), RGB[..., ::-1])
    jpeg = encoded(PICTURE, "JPEG")
    assert torch.equal(turbo(jpeg), TurboReader()(jpeg).flip(0))


def refusals(source: str | bytes, name: str | None = None) -> str:
    """What both readers say."""
    said = []
    for reader in (PillowReader(), TurboReader()):
        with pytest.raises(BadImage) as raised:
            reader(source, name)
        said.append(str(raised.value))
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    data = data[: int(len(data) * share)]
    assert tells(refusals(data, "meta.txt:21: x.jpg"), "meta.txt:21", "x.jpg", format, f"{len(data):,}")


def test_truncated_within_the_header() -> None:
    assert tells(refusals(encoded(PICTURE, "PNG")[:15], "m:1: x.png"), "m:1", "x.png", "PNG", "15")
    assert refusals(b"\xff\xd8\xff\xe0", "m:1: x.jpg").startswith("m:1: x.jpg: truncated")


def test_no_flipped_bit_of_a_png_changes_the_picture_unseen() -> None:
    noise = np.random.default_rng(0).integers(0, 64, (16, 16, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    seen = 0
    for position in range(len(data)):
        rotten = bytearray(data)
        rotten[position] ^= 1 << position % 8
        try:
            assert np.array_equal(np.asarray(PillowReader()(bytes(rotten))), noise), position
        except BadImage:
            seen += 1
    assert seen > 0.95 * len(data)  # what is left is the checksum of the end mark


def test_both_readers_judge_rotten_jpegs_alike() -> None:
    data = encoded(PICTURE, "JPEG")
    verdicts = {True: 0, False: 0}
    for position in range(0, len(data), 11):
        rotten = bytearray(data)
        rotten[position] ^= 0x10
        try:
            read_both(bytes(rotten))
            verdicts[True] += 1
        except BadImage:
            refusals(bytes(rotten))
            verdicts[False] += 1
    assert min(verdicts.values()) > 0


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"\n<!DOCTYPE html><html>404</html>")
    (tmp_path / "noise.jpg").write_bytes(b"abc" * 7)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    at = {name: f"{tmp_path}/{name}.jpg" for name in ("empty", "page", "noise", "folder", "pipe", "missing")}
    assert refusals(at["empty"], "m:1: e") == "m:1: e: empty file (0 bytes)"
    assert tells(refusals(at["page"], "m:2: p"), "m:2", "HTML", "32")
    assert tells(refusals(at["noise"]), f"{at['noise']}", "21", "JPEG", "PNG")
    assert tells(refusals(at["folder"], "m:3: f"), "m:3", "folder", "image")
    assert refusals(at["pipe"], "m:3: p") == "m:3: p: not a regular file"
    assert refusals(at["missing"]) == f"{at['missing']}: no such file"
    assert refusals(at["missing"], "m:4: x") == f"m:4: x: no such file ({at['missing']})"


def test_a_file_that_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems over a network may return it."""
    (tmp_path / "x.png").write_bytes(encoded(PICTURE, "PNG"))
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 50)))
    assert np.array_equal(np.asarray(PillowReader()(str(tmp_path / "x.png"))), RGB)


def test_floating_point_pixels_are_refused() -> None:
    data = encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF")
    assert tells(refusals(data, "m:1: x.tif"), "floating-point", "pixels", "defined")


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "90.png").write_bytes(bomb(10_000, 9_000))
    (tmp_path / "180.png").write_bytes(bomb(20_000, 9_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tells(refusals(f"{tmp_path}/90.png", "m:1: 90.png"), "m:1", "90.png", "10,000", "9,000", "=", "max_pixels", "89,478,485")
    assert tells(refusals(f"{tmp_path}/180.png", "m:2: 180.png"), "m:2", "180.png", "180,000,000", "max_pixels", "89,478,485")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB; decoded they take 270,000


def test_a_file_larger_than_its_pixels_could_be_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert tells(refusals(f"{tmp_path}/sparse.jpg", "m:1: x"), "m:1", f"{1 << 40:,}", f"{MAX_PIXELS:,}")


def test_max_pixels() -> None:
    data = encoded(PICTURE, "JPEG")
    assert TurboReader(max_pixels=24 * 32)(data).shape == (3, 24, 32)
    with pytest.raises(BadImage, match=facts("32", "24", "=", "768", "max_pixels", "767")):
        PillowReader(max_pixels=24 * 32 - 1)(data, "x")
    with pytest.raises(UserError, match=facts("max_pixels", "0", "1", "178,956,970")):
        TurboReader(max_pixels=0)


def test_table() -> None:
    assert READERS.get("fs_turbo") is TurboReader
    assert READERS.get("fs_pillow")(image_dir="x", memcached=True).image_dir == "x"


def test_threads_leave_the_warnings_of_the_process_as_they_were() -> None:
    data = encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)  # Pillow warns of it
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(PillowReader(), [data] * 64))) == 64
    assert warnings.filters == before
