"""From an image file to what the net gets: the reader and the test transforms, for images that no meta file lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from up.data.readers import Reader
from up.data.records import Batch, Sample
from up.tasks.cls.augment.device_tail import expect_numbers, split_tail
from up.tasks.cls.data.image_dataset import applied


class ImagePipeline:
    """``load`` runs anywhere, also in threads; ``finish`` brings a batch to the device and normalises it there."""

    def __init__(self, reader: Reader, transforms: Sequence[Callable[..., Any]]) -> None:
        self._reader = reader
        expect_numbers(transforms)
        self._transforms, self.tail = split_tail(transforms)

    def load(self, source: Path | bytes) -> Sample:
        """One image, of a file or encoded already, as uint8 or float (3, H, W). Raises ``BadImage``."""
        image = self._reader(source if isinstance(source, bytes) else str(source.absolute()))
        for transform in self._transforms:
            image = applied(transform, image, "image" if isinstance(source, bytes) else str(source))
        if isinstance(image, Image.Image):
            image = pil_to_tensor(image)
        return Sample(image=image, filename="image" if isinstance(source, bytes) else str(source), index=0, seed=0)

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """A collated batch as the net takes it."""
        moved = Batch(batch, image=batch.image.to(device, non_blocking=True))
        return self.tail(moved) if self.tail is not None else moved
