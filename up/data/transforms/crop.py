"""torchvision's random crop, faster for Pillow images: without its dispatch and without a padded copy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from torchvision.transforms import v2


class RandomCrop(v2.RandomCrop):  # type: ignore[misc]
    """Crop ``size`` at a random place of the image padded by ``padding``; the places and pixels are torchvision's."""

    def forward(self, *inputs: object) -> object:
        """Crop a Pillow image here, and everything else (tensors, masks and boxes) as torchvision does."""
        image = inputs[0]
        if len(inputs) == 1 and isinstance(image, Pillow.Image) and image.mode == "RGB" and self.fill == 0:
            return self._cropped(image)
        moved: object = super().forward(*inputs)
        return moved

    def _cropped(self, image: Pillow.Image) -> Pillow.Image:
        drawn = self.make_params([image])
        left_pad, top_pad, right_pad, bottom_pad = drawn["padding"]
        height, width = self.size
        top, left = drawn["top"] - top_pad, drawn["left"] - left_pad
        is_inside = top >= 0 and top + height <= image.height and left >= 0 and left + width <= image.width
        if is_inside or self.padding_mode == "constant":
            return image.crop((left, top, left + width, top + height))  # 0 beyond the borders
        rows = _padded(image.height, top_pad, bottom_pad, self.padding_mode)[drawn["top"] : drawn["top"] + height]
        columns = _padded(image.width, left_pad, right_pad, self.padding_mode)[drawn["left"] : drawn["left"] + width]
        return Pillow.fromarray(np.asarray(image)[rows[:, None], columns])


@lru_cache(maxsize=64)
def _padded(length: int, before: int, after: int, mode: str) -> NDArray[np.int64]:
    """Return which row (or column) of the image each one of the padded image repeats."""
    padded: NDArray[np.int64] = np.pad(np.arange(length), (before, after), mode=mode)  # type: ignore[call-overload]
    return padded
