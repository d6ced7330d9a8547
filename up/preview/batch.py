"""The data of one step of a run, rank by rank, fetched by the run's own loader in this process, and described for pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from up.build.data import train_batches
from up.build.parts import RunParts
from up.data.loader import ByKey, TrainLoader
from up.data.records import Batch, Sample, SampleKey, image_count
from up.data.transforms.viewing import Units, boxes_in, pixels_of, with_boxes
from up.distributed.env import as_rank
from up.engine.features import FixedViews
from up.engine.step import BatchStage, StepData, data_of_steps
from up.pages.images import thumbnail
from up.tasks.experiment import Experiment
from up.text import count
from up.types import Record

SIDE = 160  # pixels of the images of pages


@dataclass(frozen=True)
class RankData:
    """The data of ``step`` (from 0) on one rank: the keys of its samples, and its micro-batches as they leave the loader."""

    step: int
    rank: int
    keys: list[list[SampleKey]]
    data: StepData

    def rows(self, micro: int) -> list[slice]:
        """Return the rows of each sample of a micro-batch: several where a sample has several views."""
        samples = len(self.keys[micro])
        each = image_count(self.data.batches[micro]) // samples
        return [slice(each * number, each * (number + 1)) for number in range(samples)]


@dataclass(frozen=True)
class _Views:
    """The fixed views that cached features are computed of, by the keys of the visits."""

    views: FixedViews
    seed: int

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.views.data[self.views.of(key, self.seed)][SampleKey(0, key.index)]


def data_of_rank(experiment: Experiment, parts: RunParts, step: int, rank: int, ranks: int) -> RankData:
    """Fetch the data of ``step`` (from 0) on one of ``ranks`` ranks. Raises the ``UserError`` of a sample that cannot be read."""
    with as_rank(rank, ranks):
        batches = train_batches(experiment, parts.train_data)
    source = source_of(experiment, parts, step)
    loader = TrainLoader(source, batches, start_step=step, end_step=step + 1, collate=experiment.task.collate)
    data = next(data_of_steps(loader))
    if data.failure is not None:
        raise data.failure
    return RankData(step, rank, batches.keys_of(step), data)


def source_of(experiment: Experiment, parts: RunParts, step: int) -> ByKey:
    """Return the images that ``step`` trains on: fixed views where the frozen modules ran once (``finetune.features``)."""
    cache = parts.features.cache
    if cache is not None and step < cache.until:
        return _Views(cache.views, experiment.config.runtime.random_seed)
    return parts.train_data


def stage_of(parts: RunParts, step: int) -> BatchStage:
    """Return the device stage of the images that ``step`` trains on."""
    cache = parts.features.cache
    return cache.views.stage if cache is not None and step < cache.until else parts.stage


def digests(batch: Batch) -> dict[str, str]:
    """Hash each tensor of a batch, and each list of tensors (sha256 of shape, dtype and bytes)."""
    return {name: found for name in sorted(batch) if (found := _digest(batch[name])) is not None}


def _digest(value: object) -> str | None:
    tensors = [value] if isinstance(value, Tensor) else value if isinstance(value, list) else []
    if not tensors or not all(isinstance(each, Tensor) for each in tensors):
        return None
    found = sha256()
    for each in tensors:
        plain = each.detach().cpu().contiguous()
        found.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def entry_of(own: RankData, micro: int, sample: int) -> Record:
    """Describe a sample of a micro-batch: its file, the key of its randomness, and the bad image that it replaces."""
    key, batch, row = own.keys[micro][sample], own.data.batches[micro], own.rows(micro)[sample].start
    bad = batch["bad"][row] if "bad" in batch else None
    place = {"index": key.index, "epoch": key.epoch + 1, "repeat": key.repeat}
    return {"file": batch.filename[row], **place, "replaces": None if bad is None else str(bad)}


@dataclass(frozen=True)
class Viewer:
    """Describes prepared micro-batches for a page, and collects their images in ``figures``."""

    experiment: Experiment
    parts: RunParts
    units: Units
    figures: dict[str, str]

    def form(self, batch: Batch) -> Record:
        """Describe shape and dtype of a prepared batch."""
        image = batch["image"]
        shape = [*image.shape] if isinstance(image, Tensor) else None
        kind = str(image[0].dtype).removeprefix("torch.")
        text = " × ".join(map(str, shape)) if shape else f"{count(image_count(batch), 'image')} of several sizes"
        return {"size": image_count(batch), "shape": shape, "dtype": kind, "form": f"{text}, {kind}"}

    def rows(self, batch: Batch, own: RankData, micro: int = 0) -> Iterator[Record]:
        """Describe each row: its sample, and the classes that the loss compares it with, None where the task names none."""
        targets = self.experiment.task.targets(batch, self.parts.class_names)
        for sample, rows in enumerate(own.rows(micro)):
            entry = entry_of(own, micro, sample)
            for row in range(rows.start, rows.stop):
                boxes = boxes_in({name: value[row] for name, value in batch.items() if isinstance(value, list)})
                figure = f"batch-{own.rank}-{micro}-{row}"
                self.figures[figure] = thumbnail(with_boxes(pixels_of(batch["image"][row], self.units), boxes), SIDE)
                named = None if targets is None else [target._asdict() for target in targets[row]]
                lines = [str(target) for target in targets[row]] if targets is not None else []
                place = {"rank": own.rank, "micro_batch": micro, "row": row}
                shown = {"title": entry["file"], "lines": lines, "images": [figure]}
                yield {**place, **entry, "targets": named, "boxes": boxes, **shown}
