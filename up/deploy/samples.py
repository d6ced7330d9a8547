"""Real images to prove an export with: those of ``dataset.test``, or of a folder where there are none."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from up.build.data import build_dataset, build_reader, build_transforms, section_of
from up.config.walk import named_paths
from up.data.bad_images import BadImage
from up.data.dataset import KeyedDataset
from up.data.records import Batch, SampleKey
from up.data.transforms.stages import DeviceStage
from up.errors import UserError
from up.schema.named_files import missing_at
from up.tasks.experiment import Experiment
from up.text import Verbatim

CPU = torch.device("cpu")
_TRIES = 8
_SIDE = 512  # pixels; a package need not carry larger pictures


class Samples(ABC):
    """Images as the net gets them in evaluation, by their number."""

    name: str  # what the manifest calls them
    fingerprint: str  # of names and labels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def prepared(self, numbers: Sequence[int]) -> Batch:
        """``image`` (B, 3, H, W) float32 on the CPU, and ``gt`` where there are labels."""

    @abstractmethod
    def original(self, number: int) -> Image.Image:
        """The picture before its transforms, upright, in RGB."""

    def spread(self, wanted: int | None) -> list[int]:
        """The numbers of ``wanted`` images (None: all of them), evenly spread: data are often sorted by class."""
        if wanted is None or wanted >= len(self):
            return list(range(len(self)))
        return [int(number) for number in np.linspace(0, len(self) - 1, wanted).round()]

    def batches(self, numbers: Sequence[int], size: int = 32) -> Iterator[Batch]:
        """The images in groups of ``size``."""
        for start in range(0, len(numbers), size):
            yield self.prepared(numbers[start : start + size])

    def images(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32."""
        return torch.cat([batch.image for batch in self.batches(numbers)])

    def png(self, number: int) -> bytes:
        """The picture as a PNG of at most 512 pixels a side."""
        image = self.original(number)
        image.thumbnail((_SIDE, _SIDE))
        return encoded_png(image)


class DatasetSamples(Samples):
    """The images of a source of the configuration, by the transforms of ``dataset.test``."""

    def __init__(self, experiment: Experiment, source: Literal["train", "test"], class_names: list[str] | None = None) -> None:
        kwargs = section_of(experiment, source).dataset.kwargs
        paths = named_paths(section_of(experiment, source).dataset, "dataset", experiment.tables)
        experiment.raise_if_any(problem for key, path in paths for problem in missing_at(f"dataset.{source}.dataset.{key}", path))
        facts = {"class_names": class_names} if class_names and isinstance(class_names[0], str) else {}
        dataset = build_dataset(experiment, source, facts)
        if not isinstance(dataset, KeyedDataset) or not len(dataset):
            got = Verbatim("no images" if isinstance(dataset, KeyedDataset) else type(dataset).__name__)
            expected = "images of a KeyedDataset: an export is compared on real ones"
            raise UserError(got=got, expected=expected, file=experiment.path, key=f"dataset.{source}")
        self.dataset = dataset if source == "test" else dataset.with_transforms(build_transforms(experiment, "test"))
        self._stage = DeviceStage(experiment.task.stages(self.dataset).device, CPU, channels_last=False)
        self._collate = experiment.task.collate
        listed = kwargs.get("meta_file")
        self.name = ", ".join(map(str, listed)) if isinstance(listed, list) else str(listed or f"dataset.{source}")
        self.fingerprint = self.dataset.fingerprint()
        self._bgr = _is_bgr(build_reader(experiment, source))

    def __len__(self) -> int:
        return len(self.dataset)

    def prepared(self, numbers: Sequence[int]) -> Batch:
        return self._stage(self._collate([self.dataset[SampleKey(0, number)] for number in numbers]))

    def original(self, number: int) -> Image.Image:
        """That of the image, or of the next one that can be read."""
        for step in range(_TRIES):
            try:
                return _as_rgb(self.dataset.read((number + step) % len(self)).image, self._bgr)
            except BadImage as bad:
                unread = bad
        raise unread


class FolderSamples(Samples):
    """Images that no meta file lists, by the reader and the transforms of ``dataset.test``."""

    def __init__(self, experiment: Experiment, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._reader = build_reader(experiment, "test")
        self._pipeline = experiment.task.pipeline(self._reader, build_transforms(experiment, "test"))
        self._collate = experiment.task.collate
        self.name, self.fingerprint = "images of a folder", ""

    def __len__(self) -> int:
        return len(self._paths)

    def prepared(self, numbers: Sequence[int]) -> Batch:
        try:
            loaded = [self._pipeline.load(self._paths[number]) for number in numbers]
        except BadImage as bad:
            raise UserError(str(bad), key="--images") from None
        prepared: Batch = self._pipeline.finish(self._collate(loaded), CPU)
        return prepared

    def original(self, number: int) -> Image.Image:
        return _as_rgb(self._reader(str(self._paths[number].absolute())), _is_bgr(self._reader))


def _is_bgr(reader: object) -> bool:
    return getattr(reader, "color_mode", "RGB") == "BGR"


def _as_rgb(image: Image.Image | Tensor, bgr: bool) -> Image.Image:
    """What a reader gave, as a picture of its own."""
    picture: Image.Image = image.copy() if isinstance(image, Image.Image) else to_pil_image(image)
    return Image.merge("RGB", picture.split()[::-1]) if bgr else picture


def encoded_png(image: Image.Image) -> bytes:
    """A PNG; the same bytes for the same picture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
