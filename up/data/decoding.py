"""Files to RGB: one definition of an image, for all decoders.

* Transparency is dropped unless a background is given: the colour channels as they are stored (``convert("RGB")``, as
  torchvision's loader does), after a palette has been resolved. Over a background they are composited in 8 bits, as Pillow's
  ``alpha_composite`` does; a transparent colour (tRNS) makes the pixels of exactly that colour transparent.
* 16 bits a channel become 8 by keeping the high byte; 1 bit becomes 0 and 255; floating-point pixels and integers of 32 bits
  are an error, since their range is not defined.
* The orientation in EXIF is applied: the image as people see it.
* Of an animation the first frame is read.
* A file that ends early, or whose checksum is wrong where its format has one, is a ``BadImage``.

Nothing here needs torch: a deployed package reads its images with the same code as training.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import ChunkStream, PngImageFile

from up.data.bad_images import BadImage
from up.text import count

Color: TypeAlias = "tuple[int, int, int]"  # red, green, blue, 0 to 255

# A list, because Pillow would also try EPS, which runs ghostscript on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
WITH_ARRAYS = (*SUFFIXES, ".npy")  # of readers of any number of channels
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB as RGB
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Quiet:
    """Warnings are off while any thread is inside: Pillow's, of broken EXIF and the like, change no pixel.

    A ``catch_warnings`` in each thread would restore the filters of another one, since they belong to the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


QUIET = _Quiet()


def read_rgb(
    source: str | bytes, name: str | None = None, *, max_pixels: int = MAX_PIXELS, background: Color | None = None
) -> Image.Image:
    """Read the image at a path, or in bytes that ``name`` names in errors, upright and in 8-bit RGB. Raises ``BadImage``.

    Transparent pixels are composited over ``background``; without one the alpha channel is ignored.
    """
    with QUIET:
        encoded, opened = open_image(source, name, max_pixels)
        return decode(encoded, opened, name or name_of(source), background)


class Header(NamedTuple):
    """Facts of an image file, by its header."""

    has_alpha: bool = False  # or a transparent colour
    is_deep: bool = False  # more than 8 bits a channel


def header_of(path: str) -> Header:
    """Read the header of an image file; ``Header()`` for an unreadable one."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return Header()
        with QUIET, Image.open(path, formats=FORMATS) as opened:
            return Header(opened.has_transparency_data, opened.mode.startswith("I") or "16" in raw_mode(opened))
    except Exception:  # Pillow's format plugins raise many kinds of errors
        return Header()


def name_of(source: str | bytes) -> str:
    """Name an image in errors that got no name."""
    return source if isinstance(source, str) else "image"


def open_image(source: str | bytes, name: str | None, max_pixels: int) -> tuple[bytes, Image.Image]:
    """Read the encoded bytes and, with Pillow, the header; nothing is decoded yet."""
    name = name or name_of(source)
    encoded = encoded_in(source, name, max_pixels)
    try:
        opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(name, f"too large: {_pixels_in(error)}, more than max_pixels {max_pixels:,}") from None
    except Exception:  # Pillow's format plugins raise many kinds of errors
        raise BadImage(name, _unreadable(encoded)) from None
    width, height = opened.size
    expect_few_pixels(width, height, name, max_pixels)
    return encoded, opened


def expect_few_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise ``BadImage`` for an image of more than ``max_pixels``."""
    if width * height > max_pixels:
        raise BadImage(name, f"too large: {width:,} x {height:,} = {width * height:,} pixels, more than max_pixels {max_pixels:,}")


def encoded_in(source: str | bytes, name: str, max_pixels: int) -> bytes:
    """Read the bytes of an image file. Raises ``BadImage`` for a missing, empty or much too large one."""
    encoded = _read(source, name, max_pixels) if isinstance(source, str) else source
    if not encoded:
        raise BadImage(name, "empty file (0 bytes)")
    return encoded


def _read(path: str, name: str, max_pixels: int) -> bytes:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait without end
            raise BadImage(name, "a folder, not an image" if stat.S_ISDIR(found.st_mode) else "not a regular file")
        if found.st_size > 8 * max_pixels + (1 << 20):  # more than 16-bit RGBA needs without any compression
            raise BadImage(name, f"too large: {found.st_size:,} bytes for at most {max_pixels:,} pixels")
        return _bytes_of(path, found.st_size)
    except FileNotFoundError:
        raise BadImage(name, f"no such file ({path})" if name != path else "no such file") from None
    except OSError as error:
        raise BadImage(name, f"cannot be read ({error.strerror or error})") from None


def _bytes_of(path: str, size: int) -> bytes:
    """Read ``size`` bytes of a file, fewer where it ends; a file object would ask for its size and its position again: 15 us."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # O_BINARY: on Windows
    try:
        encoded = os.read(file, size)
        while len(encoded) < size and (more := os.read(file, size - len(encoded))):
            encoded += more
        return encoded
    finally:
        os.close(file)


def decode(encoded: bytes, opened: Image.Image, name: str, background: Color | None = None) -> Image.Image:
    """Decode to upright 8-bit RGB. Raises ``BadImage``."""
    with decoding(encoded, opened, name):
        return upright_rgb(opened, background)


@contextmanager
def decoding(encoded: bytes, opened: Image.Image, name: str) -> Iterator[None]:
    """Convert the errors of Pillow in the block, which decodes ``opened``, to ``BadImage``; check the sums of a PNG."""
    kind = opened.format or "image"
    try:
        if isinstance(opened, PngImageFile):  # decoding skips the checksums of the pixel data, and a flipped bit would pass unseen
            _verify_png(encoded, opened)
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise BadImage(name, _damaged(kind, len(encoded), error)) from None


def _verify_png(encoded: bytes, opened: PngImageFile) -> None:
    """Check the sums from the pixel data on, as ``verify`` of a file opened again, whose header takes as long as a small image."""
    with ChunkStream(io.BytesIO(encoded)) as chunks:
        assert chunks.fp is not None
        chunks.fp.seek(opened.tile[0][2] - 8)
        chunks.verify()


def upright_rgb(image: Image.Image, background: Color | None = None) -> Image.Image:
    """Decode an image that Pillow opened to 8-bit RGB, turned as its EXIF says. Raises the errors of Pillow's decoder."""
    if background is not None:
        _rescale_transparent_colour(image)  # before the image is loaded: afterwards Pillow has forgotten the bit depth
    if image.mode == "I" and "32" in raw_mode(image):
        raise ValueError("32-bit integers have no defined range; save it with 8 or 16 bits a channel")
    image.load()
    turn = _UPRIGHT.get(orientation(image))
    rgb = _to_rgb(image) if background is None or not image.has_transparency_data else _composited(image, background)
    return rgb.transpose(turn) if turn is not None else rgb


def upright(image: Image.Image) -> Image.Image:
    """Decode an image that Pillow opened and apply its EXIF orientation; its mode stays."""
    image.load()  # Pillow turns a TIFF itself, and forgets its orientation
    turn = _UPRIGHT.get(orientation(image))
    return image.transpose(turn) if turn is not None else image


def raw_mode(image: Image.Image) -> str:
    """Return the form of the pixels in the file, such as ``RGB;16B``; empty once the image is decoded."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _rescale_transparent_colour(image: Image.Image) -> None:
    """Bring the tRNS colour of a PNG to the 8 bits that its pixels are decoded to.

    Pillow keeps the file's 2, 4 or 16 bits and would compare them with 8-bit pixels.
    """
    colour, mode = image.info.get("transparency"), raw_mode(image)
    if mode in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if mode == "L;2" else 17)
    elif mode == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _composited(image: Image.Image, background: Color) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey with a transparent level, which Pillow's convert() does not know
        rgba = _to_rgb(image).convert("RGBA")
        rgba.putalpha(Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)))
    else:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), rgba).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it with 8 or 16 bits a channel")
    if image.mode in ("P", "PA"):  # by way of RGBA: straight to RGB some palettes with transparency come out otherwise
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """Read the orientation in EXIF, 1 (upright) to 8; 1 where it has none, or another number."""
    try:
        found = int(image.getexif().get(0x0112, 1))
    except Exception:  # EXIF that cannot be parsed says nothing about the orientation
        return 1
    return found if found in _UPRIGHT else 1


def _unreadable(encoded: bytes) -> str:
    size = count(len(encoded), "byte")
    head = encoded[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return f"an HTML page, not an image ({size})"
    for magic, kind in _MAGIC.items():
        if encoded.startswith(magic):
            return f"truncated or damaged {kind} ({size})"
    return f"not an image ({size}). Expected one of {', '.join(FORMATS)}"


def _damaged(kind: str, size: int, error: Exception) -> str:
    text = str(error)
    if isinstance(error, EOFError) or any(sign in text.lower() for sign in ("truncated", "unexpected end", "eof")):
        return f"truncated {kind} ({size:,} bytes)"
    return f"damaged {kind} ({size:,} bytes): {text.splitlines()[0] if text else type(error).__name__}"


def _pixels_in(error: Image.DecompressionBombError) -> str:
    """Read the number of pixels from Pillow's message: ``Image size (180000000 pixels) exceeds …``."""
    digits = str(error).partition("(")[2].partition(" ")[0]
    return f"{int(digits):,} pixels" if digits.isdigit() else "a decompression bomb"
