"""Image readers by the names that configurations use: Pillow, and libjpeg-turbo in torchvision."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from PIL.Image import Image as PILImage
from PIL.Image import merge
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import pil_to_tensor

from up.config.argument import NoEffect, PathTo
from up.data.decoding import MAX_PIXELS, QUIET, SUFFIXES, Color, decode, name_of, open_image, orientation, read_rgb
from up.data.records import Image
from up.errors import UserError
from up.registry import Registry
from up.text import Verbatim

READERS = Registry(
    "image_reader",
    {
        "fs_pillow": "up.data.readers:PillowReader",
        "fs_opencv": "up.data.readers:OpenCVReader",
        "fs_turbo": "up.data.readers:TurboReader",
        "fs_multichannel": "up.data.multichannel:MultiChannelReader",
    },
)

_PAGE_CACHE = "the operating system already keeps files in memory that were read"
ImageFolder: TypeAlias = Annotated[str, PathTo("image folder")]
Background: TypeAlias = Literal["drop", "white"] | tuple[int, int, int]


@runtime_checkable
class Reader(Protocol):
    """Reads one image from a path, or from bytes that ``name`` names in errors."""

    image_dir: str | list[str] | None

    def __call__(self, source: str | bytes, name: str | None = None) -> Image:
        """Read a Pillow image in RGB, or a tensor (C, H, W): uint8, or float of 0 to 1."""


@runtime_checkable
class NeedsReader(Protocol):
    """A transform of images of a reader of its own, such as the preprocessing of a package."""

    def reader(self, image_dir: str | None) -> Reader:
        """Return the reader whose images it takes."""


class PillowReader:
    """Decodes with Pillow into an RGB ``PIL.Image``, or into a uint8 tensor (1, H, W) with ``color_mode: GRAY``.

    - ``image_dir``: the folder that file names are relative to, one for all meta files or one for each.
    - ``background``: of transparent pixels. ``drop`` ignores the alpha channel and keeps the stored colours, which
      are often black or noise where nothing is visible; ``white``, or [red, green, blue] from 0 to 255, composites the image
      over that colour. Packages carry it.
    - ``color_mode``: order of the channels; ``GRAY`` for one, the luma of ITU-R 601-2 (a grey image keeps its levels). The
      network then needs ``input_channel: 1`` (``in_chans`` of timm), ``normalize`` one mean and one std.
    - ``memcached``: accepted for older files.
    - ``max_pixels``: larger images are bad images.
    """

    float_images = False
    suffixes = SUFFIXES

    def __init__(
        self,
        *,
        image_dir: ImageFolder | list[ImageFolder] | None = None,
        color_mode: Literal["RGB", "BGR", "GRAY"] = "RGB",
        memcached: Annotated[bool, NoEffect(_PAGE_CACHE)] = False,
        max_pixels: int = MAX_PIXELS,
        background: Background = "drop",
    ) -> None:
        del memcached
        self.image_dir = image_dir
        self.max_pixels = expect_pixels(max_pixels)
        self.background = _color(background)
        self.color_mode = color_mode
        self.channels = 1 if color_mode == "GRAY" else 3

    def __call__(self, source: str | bytes, name: str | None = None) -> Image:
        """Read an RGB image (channels swapped under ``color_mode: BGR``), or a uint8 tensor (1, H, W)."""
        image = read_rgb(source, name, max_pixels=self.max_pixels, background=self.background)
        if self.color_mode == "GRAY":
            return torch.as_tensor(pil_to_tensor(image.convert("L")))
        return merge("RGB", image.split()[::-1]) if self.color_mode == "BGR" else image


class OpenCVReader(PillowReader):
    """``fs_pillow`` under the name that files for OpenCV use; decoding is Pillow's, ``color_mode`` is the order of the channels.

    Both decode JPEG with libjpeg, and levels may differ by one or two where OpenCV was built with another version of it.
    """

    config_note: ClassVar[str] = "images are decoded by Pillow, the channels are in the order of color_mode"


class TurboReader(PillowReader):
    """Decodes JPEG with libjpeg-turbo into a uint8 tensor (3, H, W), and everything else with Pillow.

    - ``image_dir``, ``background``, ``color_mode``, ``memcached``, ``max_pixels``: as for ``fs_pillow``.
    """

    def __call__(self, source: str | bytes, name: str | None = None) -> Image:
        """Read a uint8 tensor (3, H, W), or (1, H, W) in grey."""
        if self.color_mode == "GRAY":
            return super().__call__(source, name)
        with QUIET:
            encoded, opened = open_image(source, name, self.max_pixels)
            pixels = _turbo(encoded, opened)
            if pixels is None:  # Pillow decides, so that both readers reject the same files
                pixels = pil_to_tensor(decode(encoded, opened, name or name_of(source), self.background))
        return pixels.flip(0) if self.color_mode == "BGR" else pixels


def _color(background: Background) -> Color | None:
    """Return the colour to composite over; None where the alpha channel is ignored."""
    if background == "drop":
        return None
    color = (255, 255, 255) if background == "white" else background
    if not all(0 <= level <= 255 for level in color):
        raise UserError(got=list(color), expected="drop, white or [red, green, blue] from 0 to 255", key="background")
    return color


def expect_pixels(max_pixels: int) -> int:
    """Return ``max_pixels``. Raises ``UserError`` for more than Pillow opens."""
    if not 0 < max_pixels <= 2 * MAX_PIXELS:
        raise UserError(
            got=Verbatim(f"{max_pixels:,}"), expected=f"1 to {2 * MAX_PIXELS:,}, the most Pillow opens", key="max_pixels"
        )
    return max_pixels


def _turbo(encoded: bytes, opened: PILImage) -> torch.Tensor | None:
    """Decode to (3, H, W) uint8; None for files that Pillow decodes."""
    if opened.format not in ("JPEG", "MPO") or opened.mode not in ("RGB", "L") or orientation(opened) != 1:
        return None
    try:
        decoded: torch.Tensor = decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return None
    return decoded
