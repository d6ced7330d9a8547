"""Images of any channels and units as pixels to look at, with their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision import tv_tensors

from up.data.records import Transform
from up.data.transforms.table import Denormalize, Normalize, ToTensor
from up.figures import Pixels

_BOX = (255, 176, 0)


class Units(NamedTuple):
    """Units of an image: ``(x - mean) / std`` of levels up to ``top``; without ``top`` they are unknown."""

    top: float | None = 1.0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __str__(self) -> str:
        if self.mean is None or self.std is None:
            return "as they are" if self.top is not None else "stretched from the smallest value to the largest"
        mean, std = (", ".join(dict.fromkeys(f"{value:.4g}" for value in values)) for values in (self.mean, self.std))
        return f"de-normalised by x · std + mean, mean {mean}, std {std}, and cut off at black and white"


def units_after(transforms: Sequence[Transform]) -> Units:
    """Return the units of float images after ``transforms``."""
    units = Units()
    for transform in transforms:
        if isinstance(transform, ToTensor):
            units = Units(transform.top)
        elif isinstance(transform, Normalize):
            units = Units(units.top, transform.mean, transform.std)
        elif isinstance(transform, Denormalize):
            units = Units(units.top)
    return units


def pixels_of(image: Tensor, units: Units) -> Pixels:
    """Convert an image (C, H, W) to pixels (H, W, 3)."""
    levels = image.detach().to("cpu", torch.float32).nan_to_num()
    if image.dtype == torch.uint8:
        levels = levels / 255
    elif units.mean is not None and units.std is not None and len(units.mean) == len(levels):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (units.mean, units.std))
        levels = (levels * std + mean) / (units.top or 1.0)
    elif units.top is not None and image.is_floating_point():
        levels = levels / units.top
    else:
        levels = (levels - levels.min()) / (levels.max() - levels.min()).clamp(min=1e-12)
    shown = levels[:3] if len(levels) >= 3 else levels[:1].expand(3, -1, -1)
    return np.ascontiguousarray((255 * shown.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy())


def channels_note(channels: int) -> str:
    """Say what is shown of images that are not of three channels; empty for those of three."""
    if channels == 3:
        return ""
    if channels == 1:
        return "images have 1 channel, shown in grey"
    part = "the first three, as red, green and blue" if channels > 3 else "the first, in grey"
    return f"images have {channels} channels, of which the page shows {part}"


def boxes_in(fields: Mapping[str, object]) -> dict[str, list[list[float]]]:
    """Return the boxes of a sample, (left, top, right, bottom) in pixels, by field."""
    return {
        name: [[round(float(edge), 2) for edge in box] for box in value]
        for name, value in fields.items()
        if isinstance(value, tv_tensors.BoundingBoxes)
    }


def with_boxes(pixels: Pixels, boxes: Mapping[str, Sequence[Sequence[float]]]) -> Pixels:
    """Draw boxes into a copy of ``pixels``."""
    if not any(boxes.values()):
        return pixels
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for left, top, right, bottom in (box for each in boxes.values() for box in each):
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_BOX, width=max(1, min(image.size) // 100))
    return np.asarray(image)
