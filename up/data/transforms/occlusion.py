"""Transforms that hide parts of an image, so that a net does not rely on a single one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import torch
from PIL import Image as pillow
from PIL.Image import Image as PILImage
from pydantic import Field
from torch import Tensor

from up.config.checked import checked
from up.data.transforms.image import MEAN_COLOUR, MEAN_GREY, Image, Probability, Transform, size_of
from up.errors import UserError


class _Hiding(Transform):
    """Hides parts of an image with probability ``p``: in the mean colour; a float image counts as normalised, its mean is 0."""

    p = 1.0

    def __call__(self, image: Image) -> Image:
        return self._hide(image) if torch.rand(()).item() < self.p else image

    def _hide(self, image: Image) -> Image:
        hidden = self.hidden(*size_of(image))
        if hidden is None:
            return image
        if isinstance(image, PILImage):
            pasted = image.copy()
            pasted.paste(MEAN_COLOUR, mask=pillow.fromarray(hidden.numpy()))
            return pasted
        changed, channels = image.clone(), image.shape[0]
        colour = MEAN_COLOUR if channels == len(MEAN_COLOUR) else (MEAN_GREY,) * channels
        for channel, level in zip(changed, colour, strict=True):  # faster than torch.where where channels are last in memory
            channel.masked_fill_(hidden, 0 if image.is_floating_point() else level)
        return changed

    @abstractmethod
    def hidden(self, height: int, width: int) -> Tensor | None:
        """Draw the mask (H, W) of the pixels to hide; None hides nothing."""


class Cutout(_Hiding):
    """Hide ``n_holes`` squares of ``length`` pixels, centred anywhere, partly outside too (DeVries & Taylor 2017)."""

    @checked
    def __init__(
        self, *, n_holes: Annotated[int, Field(ge=1)] = 1, length: Annotated[int, Field(ge=1)] = 16, p: Probability = 1.0
    ) -> None:
        self.n_holes, self.length, self.p = n_holes, length, p

    def hidden(self, height: int, width: int) -> Tensor:
        hidden = torch.zeros(height, width, dtype=torch.bool)
        for _ in range(self.n_holes):
            top = int(torch.randint(height, ())) - self.length // 2
            left = int(torch.randint(width, ())) - self.length // 2
            hidden[max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = True
        return hidden


class GridMask(_Hiding):
    """Hide a regular grid of squares (Chen et al. 2020).

    A cell is ``d_min`` to ``d_max`` pixels wide; the square hidden in each has the side ``(1 - ratio)`` of that.
    """

    @checked
    def __init__(self, *, d_min: int = 96, d_max: int = 224, ratio: float = 0.6, p: Probability = 0.8) -> None:
        if not (2 <= d_min <= d_max and 0 < ratio < 1):
            raise UserError(
                f"gridmask: got d_min {d_min}, d_max {d_max} and ratio {ratio}, "
                "expected 2 <= d_min <= d_max (pixels) and a ratio between 0 and 1"
            )
        self.d_min, self.d_max, self.ratio, self.p = d_min, d_max, ratio, p

    def hidden(self, height: int, width: int) -> Tensor:
        cell = int(torch.randint(self.d_min, self.d_max + 1, ()))
        side = max(1, round(cell * (1 - self.ratio)))
        down, right = torch.randint(cell, (2,)).tolist()
        rows: Tensor = (torch.arange(height) + down) % cell < side
        columns: Tensor = (torch.arange(width) + right) % cell < side
        return rows[:, None] & columns[None, :]


class HideAndSeek(_Hiding):
    """Cut the image into squares and hide each with probability ``p_hide`` (Singh & Lee 2017).

    Their side, in pixels, is drawn from ``grid_sizes``; 0 leaves the image whole.
    """

    @checked
    def __init__(self, *, grid_sizes: tuple[int, ...] = (0, 16, 32, 44, 56), p_hide: Probability = 0.5) -> None:
        if not grid_sizes or min(grid_sizes) < 0:
            raise UserError(f"hide_and_seek.grid_sizes: got {list(grid_sizes)}, expected pixels, as in [0, 16, 32]")
        self.grid_sizes = grid_sizes
        self.p_hide = p_hide

    def __call__(self, image: Image) -> Image:
        return self._hide(image)

    def hidden(self, height: int, width: int) -> Tensor | None:
        side = self.grid_sizes[int(torch.randint(len(self.grid_sizes), ()))]
        if not side:
            return None
        cells = torch.rand(-(-height // side), -(-width // side)) < self.p_hide
        return cells.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
