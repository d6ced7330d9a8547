"""The metrics of a package on a list of labelled images: the task's data set and evaluator, the package's preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from up.build.experiment import find_task
from up.bundle.package import Package
from up.bundle.preprocess import Preprocessing
from up.bundle.session import Session
from up.data.records import Batch, SampleKey
from up.deploy.measure import measure
from up.errors import UserError
from up.text import count

_BATCH = 32


def accuracy(package: Package, meta_file: Path, image_dir: str | None, meta_type: str, *, provider: str = "cpu") -> list[str]:
    """The main metric, for each head where there are several; a line each.

    Raises ``UserError`` for a list without labels for every head, or with an image that cannot be read.
    """
    manifest = package.manifest
    task = find_task(manifest.task)
    folder = str(meta_file) if meta_type == "image_folder" else image_dir
    prepare = Preprocessing(manifest.preprocess, manifest.input_size)
    transforms = [lambda image: torch.from_numpy(prepare(image))]
    data = task.listed(meta_file, meta_type, folder, manifest.answer, transforms)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(data), _BATCH):
            yield task.collate([data[SampleKey(0, index)] for index in range(start, min(start + _BATCH, len(data)))])

    session = Session(package.model, package.label, provider=provider)
    found = measure(session, manifest.answer, batches(), partial(task.evaluator, data))
    if found is None:
        raise UserError(f"has no labels (meta_type {meta_type})", file=meta_file, expected="images with a label for each head")
    unit = " %" if task.unit == "percent" else ""
    kind = found.metric.rpartition("_")[2]  # of several heads each has its own, such as head0_top1 beside avg_top1
    named = {name: value for name, value in found.metrics.items() if name.endswith(kind)}
    return [f"{name}: {value:.2f}{unit} on {count(found.images, 'image')} of {meta_file}" for name, value in named.items()]
