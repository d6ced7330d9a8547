"""Views of an image: what its first transforms take of it, so that a reader decodes and resizes no more than that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import torch
from PIL import Image as Pillow
from torchvision.transforms.v2 import functional as F

from up.data.geometry import Box
from up.data.jpeg import Pixels
from up.data.records import Image
from up.data.records import Transform as AnyTransform
from up.data.transforms.image import MODES, Interpolation, Size, size_of

Draw: TypeAlias = "Callable[[Size], View]"
Resizer: TypeAlias = Callable[["View", Pixels, Box], Pixels]

_SUPPORT: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}  # of the filters, in pixels of the smaller image
_PROBES = (
    ((45, 16), (20, 6)),
    ((20, 45), (30, 17)),
    ((60, 30), (21, 33)),
    ((9, 8), (23, 24)),
    ((70, 50), (9, 11)),
    ((8, 7), (8, 3)),
)


class View(NamedTuple):
    """A ``box`` of an image that is resized to ``size``, antialiased, and of that the part ``window``."""

    box: Box
    size: Size
    window: Box
    interpolation: Interpolation

    @classmethod
    def whole(cls, box: Box, size: Size, interpolation: Interpolation) -> View:
        """Return the view that keeps all of the resized box."""
        return cls(box, size, Box(0, 0, *size), interpolation)

    def of(self, image: Image) -> Image:
        """Return the view of an image; of a Pillow image with Pillow's pixels, of a tensor with torch's."""
        if isinstance(image, Pillow.Image) and image.mode == "RGB" and self.is_exact:
            box = self.needed
            return Pillow.fromarray(
                self.resized(np.asarray(image.crop((box.left, box.top, box.left + box.width, box.top + box.height))), box)
            )
        if self.box != (0, 0, *size_of(image)):
            image = F.crop(image, *self.box)
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.shape[0] == 3 and image.stride()[0] == 1:
            # a crop of channels-last memory in one piece: torch resizes it faster, and the result is channels-last again
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        image = F.resize(image, [*self.size], interpolation=MODES[self.interpolation], antialias=True)
        return image if self.window == (0, 0, *self.size) else F.crop(image, *self.window)

    def moved(self) -> View:
        """Return the same view of an image that is the box alone."""
        return self._replace(box=Box(0, 0, *self.box[2:]))

    @property
    def is_exact(self) -> bool:
        """Whether ``resized`` gives Pillow's pixels for this view on this machine."""
        window = self.window
        inside = (
            window.top >= 0 <= window.left
            and window.top + window.height <= self.size[0]
            and window.left + window.width <= self.size[1]
        )
        return inside and self.interpolation in _SUPPORT and resizer() is not None

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

    def resized(self, part: Pixels, box: Box) -> Pixels:
        """Return the view (h, w, 3) with Pillow's pixels, from the pixels of ``box``, which has what is ``needed``."""
        resize = resizer()
        assert resize is not None, "is_exact says so"
        return resize(self, part, box)

    @property
    def scale(self) -> int:
        """The fraction 1, 2 or 4 of the image that has enough pixels for the view."""
        shrinks = min(self.box.height // self.size[0], self.box.width // self.size[1])
        return 4 if shrinks >= 4 else max(1, min(shrinks, 2))

    def scaled(self, scale: int) -> View:
        """Return the same view of the image at a fraction of its size: to the nearest pixel of that."""
        top, left, height, width = self.box
        return self._replace(box=Box(top // scale, left // scale, height // scale, width // scale)) if scale > 1 else self


class Viewing(Protocol):
    """A transform that takes a view of an image."""

    interpolation: Interpolation

    def view(self, size: Size) -> View:
        """Draw what it draws for an image of this size."""


class Windowing(Protocol):
    """A transform that crops an image, the same part of all images of one size."""

    def window(self, size: Size) -> Box:
        """Return the part of an image of this size."""


class OneView:
    """The view of one visit of an image: drawn once, as soon as the size of the image is known."""

    def __init__(self, draw: Draw, *, may_scale: bool = False) -> None:
        """``may_scale``: whether an image decoded at a half or a quarter of its size will do, as in training."""
        self._draw, self.may_scale = draw, may_scale
        self._drawn: tuple[Size, View] | None = None

    def at(self, size: Size) -> View:
        """Return the view of an image of this size."""
        if self._drawn is None:
            self._drawn = size, self._draw(size)
        assert self._drawn[0] == size, "one image has one size"
        return self._drawn[1]

    def __call__(self, image: Image) -> Image:
        """Return the view of the whole image."""
        return self.at(size_of(image)).of(image)


@cache
def resizer() -> Resizer | None:
    """Load the extension that resizes as Pillow does; None where it was not built, or where this Pillow has other pixels."""
    try:
        from up.data._resize import resize
    except ImportError:
        return None

    def resized(view: View, part: Pixels, box: Box, *, may_start_across: bool) -> Pixels:
        out = np.empty((*view.window[2:], 3), np.uint8)
        corner = (box.top - view.box.top, box.left - view.box.left)
        part = part if part.strides[1:] == (3, 1) and part.strides[0] > 0 else np.ascontiguousarray(part)
        resize(part, view.box[2:], corner, view.size, view.window, view.interpolation == "bicubic", may_start_across, out)
        return out

    for may_start_across in (True, False):  # newer versions of Pillow choose the order of the two passes
        found = partial(resized, may_start_across=may_start_across)
        if all(_is_pillows(found, source, target) for source, target in _PROBES):
            return found
    return None


def _is_pillows(resized: Resizer, source: Size, target: Size) -> bool:
    pixels = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    image, box = Pillow.fromarray(pixels), Box(0, 0, *source)
    filters: dict[Interpolation, Pillow.Resampling] = {"bilinear": Pillow.Resampling.BILINEAR, "bicubic": Pillow.Resampling.BICUBIC}
    return all(
        np.array_equal(resized(View.whole(box, target, name), pixels, box), np.asarray(image.resize(target[::-1], by)))
        for name, by in filters.items()
    )


def first_view(transforms: Sequence[AnyTransform]) -> tuple[Draw | None, Sequence[AnyTransform]]:
    """Return the transforms at the start of a list as a view, and the rest; None where they are none.

    A ``Windowing`` transform behind a ``Viewing`` one belongs to the view.
    """
    if not transforms or not offers(transforms[0], "view", "move", "__call__"):
        return None, transforms
    first = cast(Viewing, transforms[0])
    if first.interpolation not in _SUPPORT:
        return None, transforms
    if len(transforms) == 1 or not offers(transforms[1], "window", "move", "__call__"):
        return first.view, transforms[1:]
    draw, crop = first.view, cast(Windowing, transforms[1])

    def both(size: Size) -> View:
        view = draw(size)
        return view._replace(window=crop.window(view.window[2:]))

    return both, transforms[2:]


def offers(part: object, method: str, *others: str) -> bool:
    """Whether ``method`` of an object does what ``others`` do: no subclass overrides one of those alone."""
    for kind in type(part).__mro__:
        if method in vars(kind):
            return True
        if any(other in vars(kind) for other in others):
            return False
    return False
