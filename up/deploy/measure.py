"""The metric of a model or a package on labelled images, and the time that an image takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from up.build.experiment import find_task
from up.bundle.answers import Answer
from up.bundle.manifest import Manifest
from up.bundle.operations import CenterCropOperation, ResizeOperation, background_of, decode_of
from up.bundle.package import Package
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session
from up.data.collate import without_bad
from up.data.multichannel import MultiChannelReader
from up.data.readers import PillowReader, Reader
from up.data.records import Batch, Dataset, SampleKey
from up.data.transforms.image import Geometric, Image, Targets, Transform
from up.data.transforms.table import CenterCrop, Resize
from up.deploy.predictor import Forward
from up.engine.ema import NoEma
from up.engine.evaluate import Evaluation
from up.engine.precision import Precision
from up.errors import UserError
from up.intervals import Interval
from up.tasks.task import AnyTask
from up.text import count
from up.types import Record

_BATCH = 32
_ROUNDS = 15
_NO_LABELS = {"image", "filename", "index", "seed", "bad"}


@dataclass(frozen=True)
class Measured:
    """Main metric, all metrics in the evaluator's unit, and their intervals, on the ``images`` that could be read."""

    metric: str
    images: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]

    @property
    def value(self) -> float:
        """Value of the main metric."""
        return round(self.metrics[self.metric], 4)


def measure(model: Forward, answer: Answer, batches: Iterable[Batch], task: AnyTask, data: Dataset) -> Measured | None:
    """Evaluate a model on prepared batches of ``data`` as a net is evaluated; None if the images have no labels."""
    images = 0
    rest = iter(batches)
    first = next(rest, None)
    if first is None or set(first) <= _NO_LABELS:
        return None

    def counted() -> Iterator[Batch]:
        nonlocal images
        for batch in map(without_bad, chain([first], rest)):
            if len(batch.image):
                images += len(batch.image)
                yield batch

    precision, make = Precision(mode=None, device=torch.device("cpu")), partial(task.evaluator, data)
    evaluation = Evaluation(counted(), lambda batch: batch, make, precision, intervals_of=task.intervals)
    metrics, evaluator, intervals = evaluation(_EvaluatedModel(model, answer), NoEma())
    if evaluator.main_metric not in metrics:
        raise UserError(f"the evaluator gives no {evaluator.main_metric} for {images} images")
    return Measured(evaluator.main_metric, images, metrics, intervals)


def milliseconds(models: Mapping[str, Forward], shape: tuple[int, int, int], batch: int) -> dict[str, float]:
    """Return the median time of one image for each of ``models``, run in turn so that a busy moment hits them all."""
    images = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(_ROUNDS + 1):
        for name, model in models.items():
            begun = time.perf_counter()
            model(images)
            if round_number:  # the first run also allocates
                times[name].append(time.perf_counter() - begun)
    return {name: 1000 * statistics.median(taken) / batch for name, taken in times.items()}


class PackageTransform(Transform):
    """The preprocessing of a package as a transform; masks and boxes are resized and cropped as the image is."""

    def __init__(self, manifest: Manifest) -> None:
        self._prepare, self._decode = Preprocessing(manifest.preprocess, manifest.input_size), decode_of(manifest.preprocess)
        self._background = background_of(manifest.preprocess)
        self._moves: list[Geometric] = []
        for op in manifest.preprocess:
            match op:
                case ResizeOperation(size=size):
                    exact = size if isinstance(size, int) else (size[0], size[1])
                    self._moves.append(Resize(size=exact, interpolation=op.interpolation))
                case CenterCropOperation(size=[height, width]):
                    self._moves.append(CenterCrop(size=(height, width)))

    def __call__(self, image: Image) -> Image:
        if isinstance(image, torch.Tensor):
            return torch.from_numpy(self._prepare(image.numpy() if image.is_floating_point() else to_pil_image(image)))
        return torch.from_numpy(self._prepare(image))

    def reader(self, image_dir: str | None) -> Reader:
        """Return a reader of the files that the package takes."""
        decode, pixels = self._decode, self._decode.max_pixels
        if decode.color != "stored":
            return PillowReader(image_dir=image_dir, background=self._background or "drop", max_pixels=pixels)
        return MultiChannelReader(channels=decode.channels, image_dir=image_dir, max_level=decode.max_level, max_pixels=pixels)

    def with_targets(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        moved = image
        for each in self._moves:
            moved, targets = each.move(moved, targets)
        return self(image), targets


def accuracy(package: Package, meta_file: Path, image_dir: str | None, meta_type: str, *, provider: str = "cpu") -> list[str]:
    """Evaluate a package on a list or folder of labelled images; return a line per head, with its 95 % interval.

    Raises ``UserError`` for a list without labels for every head, or with an image that cannot be read.
    """
    manifest = package.manifest
    task = find_task(manifest.task)
    folder = str(meta_file) if meta_type == "image_folder" else image_dir
    data = task.listed(meta_file, meta_type, folder, manifest.answer, [PackageTransform(manifest)])

    def batches() -> Iterator[Batch]:
        for start in range(0, len(data), _BATCH):
            yield task.collate([data[SampleKey(0, index)] for index in range(start, min(start + _BATCH, len(data)))])

    session = Session(package.model, package.label, provider=provider)
    found = measure(session, manifest.answer, batches(), task, data)
    if found is None:
        raise UserError(f"has no labels (meta_type {meta_type})", file=meta_file, expected="images with a label for each head")
    kind = found.metric.rpartition("_")[2]  # of several heads each has its own, such as head0_top1 beside avg_top1
    lines = []
    for name, value in found.metrics.items():
        if name.endswith(kind):
            interval = found.intervals.get(name)
            limits = "" if interval is None else f"; 95 % interval {interval.low:.1f}–{interval.high:.1f}"
            lines.append(f"{name}: {task.in_unit(value)} on {count(found.images, 'image')} of {meta_file}{limits}")
    return lines


class _EvaluatedModel(nn.Module):
    """A model as a net in evaluation mode: reads ``image``, returns the scores that the task's evaluator reads."""

    def __init__(self, model: Forward, answer: Answer) -> None:
        super().__init__()
        self._model, self._answer = model, answer

    def forward(self, record: Mapping[str, Tensor]) -> Record:
        found = self._answer.to_scores(self._model(record["image"].numpy()))
        return {
            name: [torch.from_numpy(each) for each in value] if isinstance(value, list) else torch.from_numpy(value)
            for name, value in found.items()
        }
