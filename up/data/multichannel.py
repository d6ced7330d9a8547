"""Reader of images with any number of channels, of 8 or 16 bits or floating point: PNG, TIFF, numpy arrays."""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from pydantic import Field
from torchvision.io import ImageReadMode, decode_png

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS, QUIET, SUFFIXES, decoding, encoded_in, name_of, open_image, raw_mode, upright
from up.data.readers import ImageFolder, expect_pixels
from up.text import count

_NUMPY = b"\x93NUMPY"


class MultiChannelReader:
    """Reads images of ``channels`` channels and of 8 bits, 16 bits or floats into a float32 tensor (channels, H, W).

    Integers become 0 to 1: they are divided by ``max_level``; floats stay as they are. ``to_tensor`` leaves such images
    unchanged, ``normalize`` needs a mean and a std for each channel, and the network ``input_channel: N`` (``in_chans`` of timm).

    A file is a PNG or TIFF of one band, or of as many as ``channels``; a TIFF with a page for each channel; or ``.npy`` of the form
    (H, W), (H, W, channels) or (channels, H, W).

    - ``image_dir``, ``max_pixels``: as for ``fs_pillow``.
    - ``max_level``: the level that becomes 1, such as 4095 for 12 bits; 255 or 65535 by default, as the file has it.
    """

    float_images = True
    suffixes = (*SUFFIXES, ".npy")

    @checked
    def __init__(
        self,
        *,
        channels: AtLeast1,
        image_dir: ImageFolder | list[ImageFolder] | None = None,
        max_level: Annotated[float, Field(gt=0)] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.channels, self.image_dir, self.max_level = channels, image_dir, max_level
        self.max_pixels = expect_pixels(max_pixels)

    def __call__(self, source: str | bytes, name: str | None = None) -> torch.Tensor:
        """Read a float32 tensor (channels, H, W). Raises ``BadImage``."""
        name = name or name_of(source)
        with QUIET:
            encoded = encoded_in(source, name, self.max_pixels * self.channels)
            levels = self._of_array(encoded, name) if encoded.startswith(_NUMPY) else self._of_image(encoded, name)
        pixels = torch.from_numpy(np.ascontiguousarray(levels, dtype=np.float32))
        if levels.dtype.kind == "f":
            if not torch.isfinite(pixels).all():
                raise BadImage(name, "has values that are not finite")
            return pixels
        return pixels.div_(self.max_level or (255.0 if levels.dtype == np.uint8 else 65535.0))

    def _of_array(self, encoded: bytes, name: str) -> NDArray[np.generic]:
        """Read (channels, H, W) from the bytes of a ``.npy`` file."""
        try:
            array: NDArray[np.generic] = np.load(io.BytesIO(encoded), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BadImage(name, f"damaged .npy file: {error}") from None
        if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
            raise BadImage(name, f"an array of {array.dtype}; expected uint8, uint16 or floats")
        pixels = array[..., None] if array.ndim == 2 else array
        if pixels.ndim == 3 and pixels.size and self.channels in (pixels.shape[-1], pixels.shape[0]):
            return np.moveaxis(pixels, -1, 0) if pixels.shape[-1] == self.channels else pixels
        forms = f"(H, W, {self.channels}) or ({self.channels}, H, W)"
        raise BadImage(name, f"an array of the form {array.shape}; expected {forms}, by `channels` of the reader")

    def _of_image(self, encoded: bytes, name: str) -> NDArray[np.generic]:
        """Read (channels, H, W) from the bytes of an image file."""
        _, opened = open_image(encoded, name, self.max_pixels)
        pages = getattr(opened, "n_frames", 1)
        with decoding(encoded, opened, name):
            bands = [_bands(encoded, opened)] if pages == 1 else [_page(opened, page) for page in range(min(pages, self.channels))]
        if pages > 1 and pages != self.channels:
            raise BadImage(name, f"{count(pages, 'page')}; expected {self.channels}, by `channels` of the reader")
        if any(band.shape[1:] != bands[0].shape[1:] or band.dtype != bands[0].dtype for band in bands):
            raise BadImage(name, "pages of different sizes or kinds; expected one size and one kind")
        levels = np.concatenate(bands)
        if len(levels) != self.channels:
            raise BadImage(name, f"{count(len(levels), 'channel')}; expected {self.channels}, by `channels` of the reader")
        return levels


def _page(opened: PILImage, page: int) -> NDArray[np.generic]:
    opened.seek(page)
    return _levels(opened)


def _bands(encoded: bytes, opened: PILImage) -> NDArray[np.generic]:
    """Return the bands (C, H, W) of an image, upright."""
    if opened.format == "PNG" and "16" in raw_mode(opened) and opened.mode != "I;16":  # Pillow keeps 8 of the bits of a colour
        decoded = decode_png(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.UNCHANGED)
        return np.asarray(decoded.numpy())
    return _levels(upright(opened))


def _levels(image: PILImage) -> NDArray[np.generic]:
    """Return the levels (C, H, W) in the depth of the file. Raises ``ValueError`` for a depth that has no defined range."""
    raw = raw_mode(image)
    if image.mode == "I" and "32" in raw:
        raise ValueError("32-bit integers have no defined range; save it with 8 or 16 bits, or as floats")
    if "16" in raw and image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        raise ValueError("several bands of 16 bits; save a page for each channel, or a .npy file")
    if image.mode in ("1", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    levels = np.asarray(image)
    if image.mode.startswith("I"):
        levels = levels.astype(np.uint16)
    return levels[None] if levels.ndim == 2 else np.moveaxis(levels, -1, 0)
