"""Image files to inputs of the net: the reader and the test transforms, for images that no meta file lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image as Pillow
from torchvision.transforms.v2.functional import pil_to_tensor

from up.data.readers import Reader, view_of
from up.data.records import Batch, Image, Sample, Transform
from up.data.transforms.image import Size, applied, size_of
from up.data.transforms.stages import DeviceStage, expect_channels, expect_numbers, split
from up.data.transforms.view import OneView


class ImagePipeline:
    """Loading of images, also in threads, and ``finish``, which moves a batch to the device and normalises it there."""

    def __init__(self, reader: Reader, transforms: Sequence[Transform]) -> None:
        self._reader = reader
        expect_numbers(transforms)
        expect_channels(transforms, getattr(reader, "channels", None))
        stages = split(transforms, of_floats=getattr(reader, "float_images", False))
        (self._draw, self._transforms), self.tail = stages.first_view, stages.device

    def load(self, source: Path | bytes) -> Sample:
        """Read an image, of a file or encoded, as uint8 or float (3, H, W), with its ``size`` before the transforms.

        Raises ``BadImage``.
        """
        name = "image" if isinstance(source, bytes) else str(source)
        image, size = self._read(source if isinstance(source, bytes) else str(source.absolute()))
        for transform in self._transforms:
            image, _ = applied(transform, image, {}, name)
        if isinstance(image, Pillow.Image):
            image = pil_to_tensor(image)
        return Sample(image=image, size=size, filename=name, index=0, seed=0)

    def _read(self, source: str | bytes) -> tuple[Image, Size]:
        """Read the view of an image that the first transforms take, and the size of the whole image."""
        if self._draw is None:
            image = self._reader(source)
            return image, size_of(image)
        view = OneView(self._draw, as_tensor=not self._transforms)
        return view_of(self._reader, source, None, view), view.size

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Move a collated batch to the device and finish its images."""
        return DeviceStage(self.tail, device, channels_last=False)(batch)
