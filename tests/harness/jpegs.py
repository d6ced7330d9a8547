"""JPEG files of all forms of baseline, among them those that Pillow does not write, and their pixels as Pillow decodes them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from up.data.decoding import MAX_PIXELS, QUIET, upright_rgb
from up.data.geometry import Box
from up.data.jpeg import Decoder, frame_of, part_of


def photo(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise on a gradient: every block has coefficients of all frequencies."""
    noise = np.random.default_rng(seed).integers(0, 90, (height, width, 3))
    ramp = np.linspace(0, 160, height)[:, None, None] + np.linspace(0, 5, width)[None, :, None]
    return Image.fromarray((noise + ramp).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", **options, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


def decoded(data: bytes, scale: int = 1) -> np.ndarray:
    """Pillow's pixels of the whole image, upright."""
    with QUIET:
        opened = Image.open(io.BytesIO(data))
        if scale > 1:
            opened.draft(None, (opened.width // scale, opened.height // scale))
        return np.asarray(upright_rgb(opened))


def boxes(size: tuple[int, int], number: int, seed: int) -> Iterator[Box]:
    draw = np.random.default_rng(seed)
    yield Box(0, 0, *size)
    for _ in range(number):
        height, width = (int(draw.integers(1, side + 1)) for side in size)
        yield Box(int(draw.integers(0, size[0] - height + 1)), int(draw.integers(0, size[1] - width + 1)), height, width)


def expect_parts(data: bytes, scale: int = 1, seed: int = 0, number: int = 6, *, or_none: bool = False) -> None:
    """Compare the pixels of random boxes with Pillow's. ``or_none``: the file may be left to Pillow."""
    frame, whole = frame_of(data, MAX_PIXELS), decoded(data, scale)
    assert frame is not None
    assert frame.size == decoded(data).shape[:2]
    for box in boxes(whole.shape[:2], number, seed):
        part = part_of(data, frame, box, scale)
        if part is None:
            assert or_none, box
        else:
            assert np.array_equal(part, whole[box.top : box.top + box.height, box.left : box.left + box.width]), box


def leave_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers decode whole files with Pillow alone, as where no other decoder is installed."""
    for name in ("up.data.jpeg.extension", "up.data.readers.extension"):
        monkeypatch.setattr(name, lambda: None)
    monkeypatch.setattr("up.data.readers.decoder", lambda: Decoder("Pillow", lambda encoded: None))


def with_frame(data: bytes, height: int, width: int, luma: int = 0x11) -> bytes:
    """Write another size and other sampling factors of the first component into a baseline file; its scan must fit them."""
    at = data.index(b"\xff\xc0")
    changed = bytearray(data)
    changed[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    changed[at + 11] = luma
    return bytes(changed)


def sampled(luma: int, height: int, width: int, seed: int = 0, **options: Any) -> bytes:
    """A file with chroma at 1/h of the columns and 1/v of the rows, where ``luma`` is 0xhv: Pillow writes 4:4:4, 4:2:2 and 4:2:0.

    Others get the scan of one of these with as many blocks a unit, whose blocks then are in other places of the image.
    """
    across, down = luma >> 4, luma & 15
    units = -(-height // (8 * down)) * -(-width // (8 * across))
    own = {1: 0x11, 2: 0x21, 4: 0x22}[across * down]
    row = photo(8 * (own & 15), units * 8 * (own >> 4), seed)
    return with_frame(encoded(row, subsampling={0x11: 0, 0x21: 1, 0x22: 2}[own], **options), height, width, luma)


def _codes(data: bytes) -> dict[int, dict[int, str]]:
    """The bits of each symbol by the tables of a file: 0x00 that of DC, 0x10 that of AC."""
    tables: dict[int, dict[int, str]] = {}
    at = 2
    while data[at + 1] != 0xDA:
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        while data[at + 1] == 0xC4 and body:
            number, code, symbols = sum(body[1:17]), 0, iter(body[17:])
            codes = tables.setdefault(body[0], {})
            for length in range(1, 17):
                for _ in range(body[length]):
                    codes[next(symbols)] = f"{code:0{length}b}"
                    code += 1
                code <<= 1
            body = body[17 + number :]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return tables


GREY = encoded(photo(8, 8, mode="L"), quality=60)
CODES = _codes(GREY)
"""Those of the standard's tables for luma, which ``grey`` uses."""
_LENGTHS = bytes([0x10, 0, 2, 1, 3])
OTHER_GREY = GREY.replace(_LENGTHS, bytes([0x10, 0, 1, 2, 3]))
"""The same symbols of AC, in codes of other lengths."""
OTHER_CODES = _codes(OTHER_GREY)
_TABLE = GREY.index(b"\xff\xc4\x00\xb5\x10")
ZEROS_GREY = GREY[:_TABLE] + bytes([0xFF, 0xC4, 0, 23, 0x10, *[1] * 4, *[0] * 12, 0xF0, 0x00, 0x01, 0x11]) + GREY[_TABLE + 0xB7 :]
"""Four symbols of AC: 16 zeros, the end of a block, and a coefficient 1 or -1 without and with a zero before it."""
ZEROS_CODES = _codes(ZEROS_GREY)


def _value(value: int, size: int) -> str:
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def bits_of(block: Sequence[int], codes: Mapping[int, Mapping[int, str]] = CODES) -> str:
    """The bits of a block: the difference of DC, and 63 coefficients in the order of the file."""
    size = abs(block[0]).bit_length()
    bits = codes[0x00][size] + _value(block[0], size)
    run = 0
    for value in block[1:]:
        if value == 0:
            run += 1
            continue
        size = abs(value).bit_length()
        bits += codes[0x10][0xF0] * (run // 16) + codes[0x10][run % 16 << 4 | size] + _value(value, size)
        run = 0
    return bits + (codes[0x10][0x00] if run else "")


def grey(bits: str, height: int, width: int, like: bytes = GREY) -> bytes:
    """A grey file whose scan is ``bits``, filled up with ones."""
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    start = like.index(b"\xff\xda")
    return with_frame(like[: start + 10], height, width) + scan + b"\xff\xd9"
