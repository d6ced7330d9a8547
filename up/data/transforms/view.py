"""Views of an image: what its first transforms take of it, so that a reader decodes and resizes no more than that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import torch
from PIL import Image as Pillow
from torchvision.transforms.v2 import functional as F

from up.data.geometry import Box
from up.data.jpeg import Pixels
from up.data.records import Image
from up.data.records import Transform as AnyTransform
from up.data.transforms.image import MODES, Interpolation, Size, size_of, tensor_of

Draw: TypeAlias = "Callable[[Size], View]"
Resizer: TypeAlias = Callable[["View", Pixels, Box], Pixels]
Library: TypeAlias = Literal["pillow", "torch"]
"""Library whose pixels a resized image has."""

_SUPPORT: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}  # of the filters, in pixels of the smaller image
_PROBES = (  # sizes (height, width) of images and what they are resized to, by which an extension is compared with its library
    ((45, 16), (20, 6)),
    ((20, 45), (30, 17)),
    ((60, 30), (21, 33)),
    ((9, 8), (23, 24)),
    ((70, 50), (9, 11)),
    ((8, 7), (8, 3)),
)


class View(NamedTuple):
    """A ``box`` of an image resized to ``size``, antialiased, and of that the part ``window``, mirrored left to right or not."""

    box: Box
    size: Size
    window: Box
    interpolation: Interpolation
    is_mirrored: bool = False

    @classmethod
    def whole(cls, box: Box, size: Size, interpolation: Interpolation) -> View:
        """Return the view that keeps all of the resized box."""
        return cls(box, size, Box(0, 0, *size), interpolation)

    def of(self, image: Image, *, as_tensor: bool = False) -> Image:
        """Return the view of an image; of a Pillow image with Pillow's pixels, of a tensor with torch's.

        ``as_tensor``: whether a tensor (3, H, W) of Pillow's pixels will do.
        """
        if isinstance(image, Pillow.Image):
            if image.mode == "RGB" and self.is_exact("pillow"):
                box = self.needed
                part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
                pixels = self.resized(np.asarray(part), box, "pillow")
                return tensor_of(pixels) if as_tensor else Pillow.fromarray(pixels)
        elif _has_pixels_in_memory(image) and self.is_exact("torch"):
            box = self.needed
            levels = image.numpy().transpose(1, 2, 0)[box.top : box.top + box.height, box.left : box.left + box.width]
            return tensor_of(self.resized(levels, box, "torch"))
        return self._by_library(image)

    def _by_library(self, image: Image) -> Image:
        if self.box != (0, 0, *size_of(image)):
            image = F.crop(image, *self.box)
        if isinstance(image, torch.Tensor) and _has_pixels_in_memory(image):
            # a crop of channels-last memory in one piece: torch resizes it faster, and the result is channels-last again
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        image = F.resize(image, [*self.size], interpolation=MODES[self.interpolation], antialias=True)
        image = image if self.window == (0, 0, *self.size) else F.crop(image, *self.window)
        return F.horizontal_flip(image) if self.is_mirrored else image

    def moved(self) -> View:
        """Return the same view of an image that is the box alone."""
        return self._replace(box=Box(0, 0, *self.box[2:]))

    def is_exact(self, library: Library) -> bool:
        """Whether ``resized`` gives the pixels of ``library`` for this view on this machine."""
        window = self.window
        inside = (
            window.top >= 0 <= window.left
            and window.top + window.height <= self.size[0]
            and window.left + window.width <= self.size[1]
        )
        return inside and self.interpolation in _SUPPORT and resizer(library) is not None

    @property
    def needed(self) -> Box:
        """The part of the image that ``window`` depends on."""
        top, height = self._span(self.box.height, self.size[0], self.window.top, self.window.height)
        left, width = self._span(self.box.width, self.size[1], self.window.left, self.window.width)
        return Box(self.box.top + top, self.box.left + left, height, width)

    def _span(self, source: int, target: int, start: int, length: int) -> tuple[int, int]:
        if source == target:
            return start, length
        scale = source / target
        support = _SUPPORT[self.interpolation] * max(scale, 1.0)
        first = max(0, int((start + 0.5) * scale - support + 0.5))
        return first, min(source, int((start + length - 0.5) * scale + support + 0.5)) - first

    def resized(self, part: Pixels, box: Box, library: Library) -> Pixels:
        """Return the view (h, w, 3) with the pixels of ``library``, from those of ``box``, which has what is ``needed``."""
        resize = resizer(library)
        assert resize is not None, "is_exact says so"
        return resize(self, part, box)

    @property
    def scale(self) -> int:
        """Largest divisor of the image size (1, 2 or 4) at which the box still has as many pixels as the view."""
        shrinks = min(self.box.height // self.size[0], self.box.width // self.size[1])
        return 4 if shrinks >= 4 else max(1, min(shrinks, 2))

    def scaled(self, scale: int) -> View:
        """Return the same view of the image at 1 / ``scale`` of its size: the edges of the box are at the nearest pixels."""
        top, left, height, width = self.box
        top, left, bottom, right = ((edge + scale // 2) // scale for edge in (top, left, top + height, left + width))
        return self._replace(box=Box(top, left, bottom - top, right - left))


class Viewing(Protocol):
    """A transform that takes a view of an image."""

    interpolation: Interpolation

    def view(self, size: Size) -> View:
        """Draw what it draws for an image of this size."""


class Windowing(Protocol):
    """A transform that crops an image, the same part of all images of one size."""

    def window(self, size: Size) -> Box:
        """Return the part of an image of this size."""


class Mirroring(Protocol):
    """A transform that mirrors images left to right."""

    def mirrors(self) -> bool:
        """Draw whether it mirrors."""


@dataclass(frozen=True)
class FirstTransforms:
    """Transforms that are one view of an image, drawn in their order."""

    first: Viewing
    window: Windowing | None = None
    mirror: Mirroring | None = None

    def __call__(self, size: Size) -> View:
        """Draw the view of an image of this size."""
        view = self.first.view(size)
        if self.window is not None:
            view = view._replace(window=self.window.window(view.size))
        return view._replace(is_mirrored=True) if self.mirror is not None and self.mirror.mirrors() else view


class OneView:
    """The view for one read of an image: drawn once, as soon as the size of the image is known."""

    def __init__(self, draw: Draw, *, may_scale: bool = False, as_tensor: bool = False) -> None:
        """``may_scale``: whether an image decoded at a half or a quarter of its size will do, as in training.

        ``as_tensor``: whether a tensor will do where a reader gives a Pillow image, because no other transform takes it.
        """
        self._draw, self.may_scale, self.as_tensor = draw, may_scale, as_tensor
        self._drawn: tuple[Size, View] | None = None

    def at(self, size: Size) -> View:
        """Return the view of an image of this size."""
        if self._drawn is None:
            self._drawn = size, self._draw(size)
        assert self._drawn[0] == size, "one image has one size"
        return self._drawn[1]

    @property
    def size(self) -> Size:
        """Height and width of the whole image, once its view is drawn."""
        assert self._drawn is not None, "the image was read"
        return self._drawn[0]

    def __call__(self, image: Image) -> Image:
        """Return the view of the whole image."""
        return self.at(size_of(image)).of(image, as_tensor=self.as_tensor)


@cache
def resizer(library: Library) -> Resizer | None:
    """Load the extension that resizes as ``library`` does; None where it was not built, or where this version has other pixels."""
    try:
        from up.data._resize import resize_window
    except ImportError:  # not built, or before this version
        return None

    def resized(view: View, part: Pixels, box: Box, *, arithmetic: int) -> Pixels:
        out = np.empty((*view.window[2:], 3), np.uint8)
        corner = (box.top - view.box.top, box.left - view.box.left)
        part = part if part.strides[1:] == (3, 1) and part.strides[0] > 0 else np.ascontiguousarray(part)
        is_cubic = view.interpolation == "bicubic"
        resize_window(part, view.box[2:], corner, view.size, view.window, is_cubic, arithmetic, view.is_mirrored, out)
        return out

    # numbers of an enum in _resize.c; newer versions of Pillow choose the order of the two passes
    for arithmetic in (1, 0) if library == "pillow" else (2,):
        found = partial(resized, arithmetic=arithmetic)
        if all(_agrees(found, library, source, target) for source, target in _PROBES):
            return found
    return None


def _agrees(resized: Resizer, library: Library, source: Size, target: Size) -> bool:
    pixels, box = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8), Box(0, 0, *source)
    image = Pillow.fromarray(pixels) if library == "pillow" else tensor_of(pixels)
    views = [View.whole(box, target, interpolation) for interpolation in _SUPPORT]
    return all(np.array_equal(resized(view, pixels, box), _levels(view._by_library(image))) for view in views)


def _levels(image: Image) -> Pixels:
    return np.asarray(image if isinstance(image, Pillow.Image) else image.permute(1, 2, 0))


def _has_pixels_in_memory(image: torch.Tensor) -> bool:
    """Whether an image is uint8 (3, H, W), and its memory holds the three levels of a pixel side by side (channels-last)."""
    return image.dtype == torch.uint8 and image.shape[0] == 3 and image.stride()[0] == 1 and image.stride()[2] == 3


def first_view(transforms: Sequence[AnyTransform]) -> tuple[Draw | None, Sequence[AnyTransform]]:
    """Return the transforms at the start of a list as a view, and the rest; None where they are none.

    A ``Windowing`` transform behind a ``Viewing`` one belongs to the view, and then a ``Mirroring`` one.
    """
    if not transforms or not offers(transforms[0], "view", "move", "__call__"):
        return None, transforms
    first = cast(Viewing, transforms[0])
    if first.interpolation not in _SUPPORT:
        return None, transforms
    rest = transforms[1:]
    window = mirror = None
    if rest and offers(rest[0], "window", "move", "__call__"):
        window, rest = cast(Windowing, rest[0]), rest[1:]
    if rest and offers(rest[0], "mirrors", "move", "__call__"):
        mirror, rest = cast(Mirroring, rest[0]), rest[1:]
    return FirstTransforms(first, window, mirror), rest


def offers(part: object, method: str, *others: str) -> bool:
    """Whether ``method`` of an object does what ``others`` do: no subclass overrides one of those alone."""
    kind: type = type(part)  # for mypy, by which the type of an object cannot be hashed
    return _offered(kind, method, others)


@cache
def _offered(kind: type, method: str, others: tuple[str, ...]) -> bool:
    for base in kind.__mro__:
        if method in vars(base):
            return True
        if any(other in vars(base) for other in others):
            return False
    return False
