"""Image readers by the names that configurations use: Pillow, and the fastest decoder of JPEG that there is."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from PIL import Image as Pillow
from torchvision.transforms.v2.functional import pil_to_tensor

from up.config.argument import NoEffect, PathTo
from up.data.decoding import MAX_PIXELS, QUIET, SUFFIXES, Color, decode, encoded_in, name_of, open_image, orientation, read_rgb
from up.data.jpeg import Frame, Pixels, decoder, extension, frame_of, is_jpeg, part_of
from up.data.records import Image
from up.data.transforms.image import tensor_of
from up.data.transforms.view import Library, OneView, offers
from up.errors import UserError
from up.registry import Registry
from up.text import Verbatim

READERS = Registry(
    "image_reader",
    {
        "fs_pillow": "up.data.readers:PillowReader",
        "fs_opencv": "up.data.readers:OpenCVReader",
        "fs_turbo": "up.data.readers:TurboReader",
        "auto": "up.data.readers:AutoReader",
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


class ViewReader(Protocol):
    """Reader that decodes no more of an image than its first transforms take; other readers read whole images."""

    def read_view(self, source: str | bytes, name: str | None, view: OneView) -> Image:
        """Return ``view(self(source, name))``, by less work."""


def view_of(reader: Reader, source: str | bytes, name: str | None, view: OneView) -> Image:
    """Read the view of an image; by less work with a ``ViewReader``."""
    if offers(reader, "read_view", "__call__"):  # asking a protocol takes 20 us
        return cast(ViewReader, reader).read_view(source, name, view)
    return view(reader(source, name))


@runtime_checkable
class NeedsReader(Protocol):
    """A transform that needs its own reader, such as the preprocessing of a package."""

    def reader(self, image_dir: str | None) -> Reader:
        """Return the reader of the images that it takes."""


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
    - ``fast_decode``: decode JPEG files at a half or a quarter of their size where the crop of a training image has pixels to
      spare: a third faster on photographs of 2,000 pixels, with slightly different pixels. Evaluation never does.
    """

    float_images = False
    suffixes = SUFFIXES
    notes: tuple[str, ...] = ()
    library: ClassVar[Library] = "pillow"
    """Library whose pixels a resized view in three channels has."""

    def __init__(
        self,
        *,
        image_dir: ImageFolder | list[ImageFolder] | None = None,
        color_mode: Literal["RGB", "BGR", "GRAY"] = "RGB",
        memcached: Annotated[bool, NoEffect(_PAGE_CACHE)] = False,
        max_pixels: int = MAX_PIXELS,
        background: Background = "drop",
        fast_decode: bool = False,
    ) -> None:
        del memcached
        self.image_dir = image_dir
        self.max_pixels = expect_pixels(max_pixels)
        self.background = _color(background)
        self.color_mode = color_mode
        self.channels = 1 if color_mode == "GRAY" else 3
        self.fast_decode = fast_decode

    def __call__(self, source: str | bytes, name: str | None = None) -> Image:
        """Read an RGB image (channels swapped under ``color_mode: BGR``), or a uint8 tensor; (1, H, W) in grey."""
        return self._whole(source, name or name_of(source))

    def read_view(self, source: str | bytes, name: str | None, view: OneView) -> Image:
        """Read the view of an image, for which a JPEG file is decoded only as far as needed. Raises ``BadImage``."""
        name = name or name_of(source)
        encoded = encoded_in(source, name, self.max_pixels)
        frame = frame_of(encoded, self.max_pixels)
        seen = None if frame is None else self._part(encoded, frame, view)
        if seen is None and self.fast_decode and view.may_scale and extension() is None:
            seen = self._draft(encoded, name, view)
        return view(self._whole(encoded, name)) if seen is None else seen

    def _whole(self, source: str | bytes, name: str) -> Image:
        return self._image(read_rgb(source, name, max_pixels=self.max_pixels, background=self.background))

    def _part(self, encoded: bytes, frame: Frame, view: OneView) -> Image | None:
        """Decode the part of a JPEG file that the view needs; None for a damaged one."""
        drawn = view.at(frame.size)
        scale = drawn.scale if self.fast_decode and view.may_scale else 1
        drawn = drawn.scaled(scale)
        if self.color_mode == "GRAY" or not drawn.is_exact(self.library):
            part = part_of(encoded, frame, drawn.box, scale)
            return None if part is None else drawn.moved().of(self._of_pixels(part))
        box = drawn.needed
        part = part_of(encoded, frame, box, scale)
        if part is None:
            return None
        pixels = drawn.resized(part, box, self.library)
        return self._tensor(pixels) if view.as_tensor else self._of_pixels(pixels)

    def _draft(self, encoded: bytes, name: str, view: OneView) -> Image | None:
        """Return the same view of a scaled JPEG file without the extension: Pillow scales, but decodes all of it."""
        with QUIET:
            _, opened = open_image(encoded, name, self.max_pixels)
            if not is_jpeg(opened):
                return None
            size = opened.size[:: 1 if orientation(opened) > 4 else -1]
            drawn = view.at((size[0], size[1]))
            opened.draft(None, (opened.width // drawn.scale, opened.height // drawn.scale))
            return drawn.scaled(drawn.scale).of(self._image(decode(encoded, opened, name)))

    def _of_pixels(self, pixels: Pixels) -> Image:
        return self._image(Pillow.fromarray(pixels))

    def _tensor(self, pixels: Pixels) -> Image:
        tensor = tensor_of(pixels)
        return tensor.flip(0) if self.color_mode == "BGR" else tensor

    def _image(self, image: Pillow.Image) -> Image:
        """Convert an image in RGB to the channels of this reader."""
        if self.color_mode == "GRAY":
            return torch.as_tensor(pil_to_tensor(image.convert("L")))
        return Pillow.merge("RGB", image.split()[::-1]) if self.color_mode == "BGR" else image


class OpenCVReader(PillowReader):
    """``fs_pillow`` under the name that files for OpenCV use; decoding is Pillow's, ``color_mode`` is the order of the channels.

    Both decode JPEG with libjpeg, and levels may differ by one or two where OpenCV was built with another version of it.
    """

    config_note: ClassVar[str] = "images are decoded by Pillow, the channels are in the order of color_mode"


class AutoReader(PillowReader):
    """Decodes JPEG with the fastest decoder there is into a uint8 tensor (3, H, W), and everything else with Pillow.

    The decoder is up's own extension, torchcodec, simplejpeg or Pillow, whichever of them is found first; the pixels are the same.

    - ``image_dir``, ``background``, ``color_mode``, ``memcached``, ``max_pixels``, ``fast_decode``: as for ``fs_pillow``.
    """

    library = "torch"

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Report which decoder of JPEG this machine has."""
        return (f"JPEG files are decoded by {decoder().name}",)

    def _whole(self, source: str | bytes, name: str) -> Image:
        if self.color_mode == "GRAY":
            return super()._whole(source, name)
        with QUIET:
            encoded, opened = open_image(source, name, self.max_pixels)
            usable = is_jpeg(opened) and orientation(opened) == 1
            pixels = decoder().decode(encoded) if usable else None
            if pixels is not None:
                return self._of_pixels(pixels)
            return self._image(decode(encoded, opened, name, self.background))  # Pillow decides what a bad image is

    def _of_pixels(self, pixels: Pixels) -> Image:
        return super()._of_pixels(pixels) if self.color_mode == "GRAY" else self._tensor(pixels)

    def _image(self, image: Pillow.Image) -> Image:
        return super()._image(image) if self.color_mode == "GRAY" else self._tensor(np.array(image))


class TurboReader(AutoReader):
    """``auto`` under the name that earlier files use.

    - ``image_dir``, ``background``, ``color_mode``, ``memcached``, ``max_pixels``, ``fast_decode``: as for ``fs_pillow``.
    """


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
