"""Random erasing: rectangles of noise in normalised images."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from up.config.argument import NoEffect
from up.config.checked import checked
from up.data.geometry import Box
from up.data.transforms.image import Image, Probability, Transform, expect_range
from up.errors import UserError
from up.text import Verbatim

_ATTEMPTS = 10


class RandomErasing(Transform):
    """With ``probability``, erase ``min_count`` to ``max_count`` rectangles of a normalised image (Zhong et al. 2020).

    An area is uniform in ``min_area`` to ``max_area`` of the image, shared among several; an aspect (h / w) is
    log-uniform in ``min_aspect`` to ``max_aspect`` (1 / min_aspect). ``mode``: ``pixel`` fills with N(0, 1), ``rand``
    with one such colour, ``const`` with 0.
    """

    @checked
    def __init__(
        self,
        *,
        probability: Probability = 0.5,
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        mode: Literal["pixel", "rand", "const"] = "pixel",
        min_count: int = 1,
        max_count: int | None = None,
        num_splits: Annotated[int, NoEffect("it spares the first of several copies of a batch, and there is one copy")] = 0,
        device: Annotated[str | None, NoEffect("erasing runs where the batch is, on the device of the run")] = None,
    ) -> None:
        del num_splits, device
        self.probability = probability
        self.areas = (min_area, max_area)
        if not 0 <= min_area <= max_area <= 1:
            raise UserError(got=list(self.areas), expected="shares of the image, 0 <= min_area <= max_area <= 1", key="min_area")
        widest = 1 / max(min_aspect, 1e-9) if max_aspect is None else max_aspect
        low, high = expect_range((min_aspect, widest), "min_aspect")
        self.log_aspects = (math.log(low), math.log(high))
        self.mode = mode
        self.counts = (min_count, min_count if max_count is None else max_count)
        if not 1 <= self.counts[0] <= self.counts[1]:
            raise UserError(got=list(self.counts), expected="1 <= min_count <= max_count", key="min_count")

    def __call__(self, image: Image) -> Tensor:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = f"a {image.dtype} tensor" if isinstance(image, Tensor) else "a PIL image"
            raise UserError(
                "torch_randerase", got=Verbatim(got), expected="a float tensor", fix="Put it after to_tensor and normalize."
            )
        boxes = self.boxes(image.shape[-2], image.shape[-1], torch.default_generator)
        return self.erase_(image.clone(), boxes, torch.default_generator) if boxes else image

    def boxes(self, height: int, width: int, generator: Generator) -> list[Box]:
        """Draw the rectangles to erase in an image of this size, often none, from a CPU generator."""
        coin, number = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if coin >= self.probability:
            return []
        low, high = self.counts
        count = low + int(number * (high - low + 1))
        found = (self._box(height, width, count, generator) for _ in range(count))
        return [box for box in found if box is not None]

    def _box(self, height: int, width: int, count: int, generator: Generator) -> Box | None:
        for area, aspect, down, right in torch.rand(_ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist():
            pixels = (self.areas[0] + area * (self.areas[1] - self.areas[0])) * height * width / count
            ratio = math.exp(self.log_aspects[0] + aspect * (self.log_aspects[1] - self.log_aspects[0]))
            h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if h < height and w < width:
                return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
        return None

    def erase_(self, image: Tensor, boxes: list[Box], generator: Generator) -> Tensor:
        """Fill the rectangles of ``image`` (C, H, W) in place; ``generator`` is one of the image's device."""
        channels = image.shape[0]
        for top, left, height, width in boxes:
            shape = (channels, height, width) if self.mode == "pixel" else (channels, 1, 1)
            # drawn into a tensor of its own and copied: the noise must not depend on the memory format of the batch
            fill = torch.zeros(shape, dtype=image.dtype, device=image.device)
            if self.mode != "const":
                fill.normal_(generator=generator)
            image[:, top : top + height, left : left + width] = fill
        return image
