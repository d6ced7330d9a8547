"""Image files to inputs of the net: the reader and the test transforms, for images that no meta file lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from up.data.readers import Reader
from up.data.records import Batch, Sample, Transform
from up.data.transforms.image import applied, size_of
from up.data.transforms.stages import DeviceStage, expect_channels, expect_numbers, split


class ImagePipeline:
    """Loading of images, also in threads, and ``finish``, which moves a batch to the device and normalises it there."""

    def __init__(self, reader: Reader, transforms: Sequence[Transform]) -> None:
        self._reader = reader
        expect_numbers(transforms)
        expect_channels(transforms, getattr(reader, "channels", None))
        stages = split(transforms, of_floats=getattr(reader, "float_images", False))
        self._transforms, self.tail = stages.worker, stages.device

    def load(self, source: Path | bytes) -> Sample:
        """Read an image, of a file or encoded, as uint8 or float (3, H, W), with its ``size`` before the transforms.

        Raises ``BadImage``.
        """
        name = "image" if isinstance(source, bytes) else str(source)
        image = self._reader(source if isinstance(source, bytes) else str(source.absolute()))
        size = size_of(image)
        for transform in self._transforms:
            image, _ = applied(transform, image, {}, name)
        if isinstance(image, Image.Image):
            image = pil_to_tensor(image)
        return Sample(image=image, size=size, filename=name, index=0, seed=0)

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Move a collated batch to the device and finish its images."""
        return DeviceStage(self.tail, device, channels_last=False)(batch)
