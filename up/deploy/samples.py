"""Real images to compare an export on: those of a source of the configuration, or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from up.build.data import build_dataset, build_reader, build_transforms, completed_by_train, section_of
from up.bundle.answers import Floats
from up.bundle.testvectors import encoded_png, npy
from up.config.parts import DerivedArguments
from up.config.walk import named_paths
from up.data.bad_images import BadImage
from up.data.dataset import KeyedDataset
from up.data.records import Batch, Sample, SampleKey
from up.data.transforms.stages import DeviceStage
from up.errors import UserError
from up.schema.decode import missing_at
from up.tasks.experiment import Experiment
from up.text import Verbatim

CPU = torch.device("cpu")
_BATCH = 32
_TRIES = 8
_SIDE = 512  # pixels; test vectors need no larger images


@dataclass(frozen=True)
class Samples:
    """Images as the net gets them in evaluation, by number; ``fingerprint`` is of names and labels."""

    name: str
    count: int
    load: Callable[[int], Sample]
    batched: Callable[[Sequence[Sample]], Batch]  # image (B, 3, H, W) float32 on the CPU, and labels if there are any
    read: Callable[[int], Image.Image | Tensor]  # before the transforms, upright
    bgr: bool
    fingerprint: str = ""
    dataset: KeyedDataset | None = None

    def spread(self, wanted: int | None) -> list[int]:
        """Choose ``wanted`` images (None: all of them), evenly spread: data are often sorted by class."""
        if wanted is None or wanted >= self.count:
            return list(range(self.count))
        return [int(number) for number in np.linspace(0, self.count - 1, wanted).round()]

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Load images in batches."""
        for start in range(0, len(numbers), _BATCH):
            yield self.batched([self.load(number) for number in numbers[start : start + _BATCH]])

    def images(self, numbers: Sequence[int]) -> Floats:
        """Load images as one array (B, 3, H, W) float32."""
        return torch.cat([batch.image for batch in self.batches(numbers)]).numpy()

    def encoded(self, number: int) -> bytes:
        """Encode the image, or the next one that can be read, of at most 512 pixels a side: PNG, or .npy for floats."""
        for step in range(_TRIES):
            try:
                read = self.read((number + step) % self.count)
                break
            except BadImage as bad:
                unread = bad
        else:
            raise unread
        if isinstance(read, Tensor) and read.is_floating_point():
            return npy(read[:, :_SIDE, :_SIDE].numpy())
        image = read.copy() if isinstance(read, Image.Image) else to_pil_image(read)
        if self.bgr:
            image = Image.merge("RGB", image.split()[::-1])
        image.thumbnail((_SIDE, _SIDE))
        return encoded_png(image)


def samples_of(experiment: Experiment, source: Literal["train", "test"], derived: DerivedArguments | None = None) -> Samples:
    """Take the images of ``dataset.train`` or ``dataset.test``, with the transforms of ``dataset.test``.

    ``derived`` are arguments of the data set that follow from the net, such as its class names.
    """
    part = section_of(experiment, source).dataset
    paths = named_paths(part, "dataset", experiment.tables)
    experiment.raise_if_any(problem for key, path in paths for problem in missing_at(f"dataset.{source}.dataset.{key}", path))
    if source == "test":
        derived = completed_by_train(experiment, derived or {})
    dataset = build_dataset(experiment, source, derived)
    if not isinstance(dataset, KeyedDataset) or not len(dataset):
        got = Verbatim("no images" if isinstance(dataset, KeyedDataset) else type(dataset).__name__)
        expected = "images of a KeyedDataset: an export is compared on real ones"
        raise UserError(got=got, expected=expected, file=experiment.path, key=f"dataset.{source}")
    data = dataset if source == "test" else dataset.with_transforms(build_transforms(experiment, "test"))
    stage = DeviceStage(experiment.task.stages(data).device, CPU, channels_last=False)
    listed = part.kwargs.get("meta_file")
    return Samples(
        name=", ".join(map(str, listed)) if isinstance(listed, list) else str(listed or f"dataset.{source}"),
        count=len(data),
        load=lambda number: data[SampleKey(0, number)],
        batched=lambda samples: stage(experiment.task.collate(samples)),
        read=lambda number: data.read(number).image,
        bgr=_is_bgr(build_reader(experiment, source)),
        fingerprint=data.fingerprint(),
        dataset=data,
    )


def samples_in(experiment: Experiment, files: Sequence[Path]) -> Samples:
    """Take the images of ``files``, by the reader and the transforms of ``dataset.test``."""
    reader = build_reader(experiment, "test")
    pipeline = experiment.task.pipeline(reader, build_transforms(experiment, "test"))

    def load(number: int) -> Sample:
        try:
            return pipeline.load(files[number])
        except BadImage as bad:
            raise UserError(str(bad), key="--images") from None

    return Samples(
        name="images of a folder",
        count=len(files),
        load=load,
        batched=lambda samples: pipeline.finish(experiment.task.collate(samples), CPU),
        read=lambda number: reader(str(files[number].absolute())),
        bgr=_is_bgr(reader),
    )


def _is_bgr(reader: object) -> bool:
    return getattr(reader, "color_mode", "RGB") == "BGR"
