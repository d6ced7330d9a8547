"""JPEG files: the part of one that is needed, through an extension over libjpeg-turbo, and whole ones through a chain of decoders.

All members of the chain decode with libjpeg-turbo's exact transform and smooth chroma, as Pillow does, so that they give the same
pixels. Whatever one of them is in doubt about is left to Pillow, which alone decides what a bad image is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.data.decoding import FORMATS, QUIET, orientation
from up.data.geometry import Box, Size

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)
# Stored pixels to upright ones by the orientation in EXIF: whether rows and columns are mirrored, then whether they change places.
_TURNS = {1: "", 2: "c", 3: "rc", 4: "r", 5: "t", 6: "rt", 7: "rct", 8: "ct"}


class Frame(NamedTuple):
    """Stored height and width of a JPEG file that the extension decodes, and its orientation in EXIF."""

    stored: Size
    orientation: int = 1

    @property
    def size(self) -> Size:
        """Height and width of the upright image."""
        height, width = self.stored
        return (width, height) if "t" in _TURNS[self.orientation] else (height, width)


@cache
def extension() -> ModuleType | None:
    """Load the extension with the libjpeg-turbo of Pillow; None where it was not built, or for another version of the library."""
    try:
        from PIL import _imaging

        from up.data import _jpeg

        _jpeg.load(str(_imaging.__file__))
        _jpeg.replace(_sample())  # where it does not, the library decodes alone: the same pixels, more slowly
    except (ImportError, AttributeError, OSError):  # AttributeError: compiled from earlier sources
        return None
    return _jpeg


def _sample() -> bytes:
    """Return a small JPEG file whose blocks have coefficients of all frequencies and of many sizes."""
    index = np.arange(56 * 72 * 3, dtype=np.int64)
    levels = (index * index * 40503 >> 8) % (index % 251 + 1)
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8).reshape(56, 72, 3)).save(file, "JPEG", quality=90)
    return file.getvalue()


def frame_of(encoded: bytes, max_pixels: int) -> Frame | None:
    """Read the frame of a JPEG file in 8-bit RGB or grey; None for all others, for larger and for doubtful ones."""
    native = extension()
    found = native.frame(encoded) if native is not None else None
    if found is None:
        return None
    height, width, is_plain = found
    if height * width > max_pixels:
        return None
    turn = 1 if is_plain else _orientation(encoded)
    return None if turn is None else Frame((height, width), turn)


def _orientation(encoded: bytes) -> int | None:
    """Read the orientation as Pillow does; None where it opens the file as another kind of image."""
    try:
        with QUIET:
            opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
            return orientation(opened) if is_jpeg(opened) else None
    except Exception:  # Pillow's format plugins raise many kinds of errors
        return None


def is_jpeg(opened: Image.Image) -> bool:
    """Check whether an image is JPEG in RGB or grey, which all decoders decode alike."""
    return opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L")


def part_of(encoded: bytes, frame: Frame, box: Box, scale: int = 1) -> Pixels | None:
    """Decode a box of the upright image, the pixels of a full decode; None for a damaged file. The result is a view of its memory.

    ``scale``: 1, 2 or 4; the image is decoded at this fraction of its size, in whose pixels ``box`` is.
    """
    native = extension()
    assert native is not None, "there is no frame without it"
    turns = _TURNS[frame.orientation]
    height, width = (-(-side // scale) for side in frame.stored)
    stored = Box(box.left, box.top, box.width, box.height) if "t" in turns else box
    top = height - stored.top - stored.height if "r" in turns else stored.top
    left = width - stored.left - stored.width if "c" in turns else stored.left
    pixels = np.empty((stored.height, stored.width + native.SPARE, 3), np.uint8)
    column = native.decode(encoded, scale, top, left, stored.height, stored.width, pixels)
    return None if column < 0 else _turned(pixels[:, column : column + stored.width], turns)


def _turned(pixels: Pixels, turns: str) -> Pixels:
    turned = pixels[:: -1 if "r" in turns else 1, :: -1 if "c" in turns else 1]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if "t" in turns else turned) if turns else pixels


class Decoder(NamedTuple):
    """A decoder of whole files that are upright and in RGB or grey; it returns None for files that it leaves to Pillow."""

    name: str
    decode: Callable[[bytes], Pixels | None]


def _by_extension() -> Callable[[bytes], Pixels | None]:
    native = extension()
    if native is None:
        raise ImportError("not built")

    def decode(encoded: bytes) -> Pixels | None:
        found = native.frame(encoded)
        if found is None:
            return None
        height, width, _ = found
        return part_of(encoded, Frame((height, width)), Box(0, 0, height, width))

    return decode


def _by_torchcodec() -> Callable[[bytes], Pixels | None]:
    from torchcodec.decoders import decode_jpeg

    def decode(encoded: bytes) -> Pixels | None:
        try:
            decoded: Pixels = decode_jpeg(encoded, mode="RGB").permute(1, 2, 0).numpy()
        except RuntimeError:
            return None
        return decoded

    return decode


def _by_simplejpeg() -> Callable[[bytes], Pixels | None]:
    from simplejpeg import decode_jpeg

    def decode(encoded: bytes) -> Pixels | None:
        try:
            decoded: Pixels = decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, strict=True)
        except ValueError:
            return None
        return decoded

    return decode


CHAIN = {"up's extension": _by_extension, "torchcodec": _by_torchcodec, "simplejpeg": _by_simplejpeg}


@cache
def decoder() -> Decoder:
    """Return the first usable decoder of the chain, at the latest Pillow itself."""
    for name, load in CHAIN.items():
        try:
            return Decoder(name, load())
        except (ImportError, OSError, RuntimeError):  # not installed, or built for another torch
            continue
    return Decoder("Pillow", lambda encoded: None)
