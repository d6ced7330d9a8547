"""Files of any number of channels, of 8 or 16 bits or floating point: PNG, TIFF, numpy arrays.

Needs no torch, except for 16-bit colour PNG: a deployed package reads its images with the same code as training.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as PILImage

from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS, QUIET, decoding, encoded_in, expect_few_pixels, name_of, open_image, raw_mode, upright
from up.text import count

_NUMPY = b"\x93NUMPY"


def read_channels(
    source: str | bytes, name: str | None = None, *, channels: int, max_level: float | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.float32]:
    """Read a file as floats (channels, H, W): integers divided by ``max_level``, 255 or 65535 by default; floats unchanged.

    Raises ``BadImage``.
    """
    name = name or name_of(source)
    with QUIET:
        encoded = encoded_in(source, name, max_pixels * channels)
        is_array = encoded.startswith(_NUMPY)
        levels = (_of_array if is_array else _of_image)(encoded, name, channels, max_pixels)
    with np.errstate(over="ignore"):  # values beyond the range of float32 become infinite
        pixels = np.array(levels, dtype=np.float32, order="C")
    if levels.dtype.kind != "f":
        pixels /= np.float32(max_level or (255 if levels.dtype == np.uint8 else 65535))
    elif not np.isfinite(pixels).all():
        raise BadImage(name, "has values that are not finite")
    return pixels


def _of_array(encoded: bytes, name: str, channels: int, max_pixels: int) -> NDArray[np.generic]:
    """Read (channels, H, W) from the bytes of a ``.npy`` file."""
    try:
        _expect_all_values(encoded)
        array: NDArray[np.generic] = np.load(io.BytesIO(encoded), allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # numpy parses the header as Python, which raises many kinds of errors
        raise BadImage(name, f"damaged .npy file: {error}") from None
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise BadImage(name, f"an array of {array.dtype}; expected uint8, uint16 or floats")
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim == 3 and pixels.size and channels in (pixels.shape[-1], pixels.shape[0]):
        planes = np.moveaxis(pixels, -1, 0) if pixels.shape[-1] == channels else pixels
        expect_few_pixels(planes.shape[2], planes.shape[1], name, max_pixels)
        return planes
    forms = f"(H, W, {channels}) or ({channels}, H, W)"
    raise BadImage(name, f"an array of the form {array.shape}; expected {forms}, by `channels` of the reader")


def _expect_all_values(encoded: bytes) -> None:
    """Raise ``ValueError`` for a ``.npy`` file with fewer values than its header says, for all of which numpy would allocate."""
    file = io.BytesIO(encoded)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if (size := math.prod(shape) * dtype.itemsize) > len(encoded):
        raise ValueError(f"the header says {size:,} bytes of values, the file has {len(encoded):,}")


def _of_image(encoded: bytes, name: str, channels: int, max_pixels: int) -> NDArray[np.generic]:
    """Read (channels, H, W) from the bytes of an image file."""
    _, opened = open_image(encoded, name, max_pixels)
    with decoding(encoded, opened, name):
        pages = getattr(opened, "n_frames", 1)  # reads the header of each
        bands = [_bands(encoded, opened)] if pages == 1 else [_page(opened, page) for page in range(min(pages, channels))]
    if pages > 1 and pages != channels:
        raise BadImage(name, f"{count(pages, 'page')}; expected {channels}, by `channels` of the reader")
    if any(band.shape[1:] != bands[0].shape[1:] or band.dtype != bands[0].dtype for band in bands):
        raise BadImage(name, "pages of different sizes or kinds; expected one size and one kind")
    levels = np.concatenate(bands)
    if len(levels) != channels:
        raise BadImage(name, f"{count(len(levels), 'channel')}; expected {channels}, by `channels` of the reader")
    return levels


def _page(opened: PILImage, page: int) -> NDArray[np.generic]:
    opened.seek(page)
    return _levels(opened)


def _bands(encoded: bytes, opened: PILImage) -> NDArray[np.generic]:
    """Return the bands (C, H, W) of an image of one page."""
    if opened.format == "PNG" and "16" in raw_mode(opened) and opened.mode != "I;16":  # Pillow keeps 8 of the bits of a colour
        return _by_torchvision(encoded)
    return _levels(opened)


def _by_torchvision(encoded: bytes) -> NDArray[np.generic]:
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:
        raise ValueError("16-bit colours need torchvision; save a .npy file, or a TIFF with a page for each channel") from None
    return np.asarray(decode_png(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy())


def _levels(image: PILImage) -> NDArray[np.generic]:
    """Return the levels (C, H, W), upright, in the depth of the file. Raises ``ValueError`` for one without a defined range."""
    raw = raw_mode(image)  # known until the image is decoded
    if image.mode == "I" and "32" in raw:
        raise ValueError("32-bit integers have no defined range; save it with 8 or 16 bits, or as floats")
    if "16" in raw and image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        raise ValueError("several bands of 16 bits; save a page for each channel, or a .npy file")
    image = upright(image)
    if image.mode in ("1", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    levels = np.asarray(image)
    if image.mode.startswith("I"):
        levels = levels.astype(np.uint16)
    return levels[None] if levels.ndim == 2 else np.moveaxis(levels, -1, 0)
