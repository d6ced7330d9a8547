"""Reader of images with any number of channels, of 8 or 16 bits or floating point."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.data.channels import read_channels
from up.data.decoding import MAX_PIXELS, WITH_ARRAYS
from up.data.readers import ImageFolder, expect_pixels


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
    suffixes = WITH_ARRAYS

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
        read = read_channels(source, name, channels=self.channels, max_level=self.max_level, max_pixels=self.max_pixels)
        return torch.from_numpy(read)
