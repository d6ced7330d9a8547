"""What a network is worth: its metric on labelled images, and how long an image takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from up.bundle.heads import scores_of
from up.bundle.manifest import Head
from up.bundle.session import Floats, Session
from up.data.collate import without_bad
from up.deploy.samples import DatasetSamples
from up.engine.evaluate import Evaluator
from up.errors import UserError

Outputs = Callable[[Tensor], Floats]  # images (B, 3, H, W) to the numbers of all heads (B, numbers)
_ROUNDS = 15


@dataclass(frozen=True)
class Measured:
    """The ``metric`` of ``images`` images that could be read, in percent, for each model."""

    metric: str
    images: int
    values: dict[str, float]


def metrics_of(
    samples: DatasetSamples,
    numbers: Sequence[int],
    models: Mapping[str, Outputs],
    make_evaluator: Callable[[Any], Evaluator],
    heads: Sequence[Head],
    *,
    activated: bool,
) -> Measured | None:
    """What each of ``models`` is worth; None without labels. One pass over the images serves all of them."""
    evaluators = {name: make_evaluator(samples.dataset) for name in models}
    images = 0
    for batch in map(without_bad, samples.batches(numbers)):
        if "gt" not in batch:
            return None
        images += len(batch.image)
        if not len(batch.image):
            continue
        for name, outputs in models.items():
            scores = [torch.from_numpy(part) for part in scores_of(outputs(batch.image), heads, activated=activated)]
            evaluators[name].update({"scores": scores[0] if len(scores) == 1 else scores}, batch)
    values = {}
    for name, evaluator in evaluators.items():
        evaluator.merge([evaluator.state()])
        values[name] = evaluator.compute()
    metric = next(iter(evaluators.values())).main_metric
    if any(metric not in computed for computed in values.values()):
        raise UserError(f"the evaluator of dataset.test gives no {metric} for {len(numbers)} images.")
    return Measured(metric, images, {name: round(computed[metric], 4) for name, computed in values.items()})


def milliseconds(sessions: Mapping[str, Session], shape: tuple[int, int, int], batch: int) -> dict[str, float]:
    """The median time of one image for each of ``sessions``, measured in turn so that a busy moment hits them all."""
    images = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for name, session in sessions.items():
        session(images)  # the first run also allocates
        times[name].clear()
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            begun = time.perf_counter()
            session(images)
            times[name].append(time.perf_counter() - begun)
    return {name: 1000 * statistics.median(taken) / batch for name, taken in times.items()}
