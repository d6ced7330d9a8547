"""The metric of a model on labelled images, and the time that an image takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from up.bundle.answers import Answer
from up.data.collate import without_bad
from up.data.records import Batch
from up.deploy.models import EvaluatedModel, Model
from up.engine.ema import NoEma
from up.engine.evaluate import Evaluation, Evaluator
from up.engine.precision import Precision
from up.errors import UserError

_ROUNDS = 15
_NO_LABELS = {"image", "filename", "index", "seed", "bad"}


@dataclass(frozen=True)
class Measured:
    """The ``metric`` of the evaluator on ``images`` images that could be read, and all its metrics, in its unit."""

    metric: str
    images: int
    metrics: Mapping[str, float]

    @property
    def value(self) -> float:
        """The metric."""
        return round(self.metrics[self.metric], 4)


def measure(model: Model, answer: Answer, batches: Iterable[Batch], make_evaluator: Callable[[], Evaluator]) -> Measured | None:
    """Evaluate a model on prepared batches, as a net is; None where the images have no labels."""
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

    evaluation = Evaluation(counted(), lambda batch: batch, make_evaluator, Precision(mode=None, device=torch.device("cpu")))
    metrics, evaluator = evaluation(EvaluatedModel(model, answer), NoEma())
    if evaluator.main_metric not in metrics:
        raise UserError(f"the evaluator gives no {evaluator.main_metric} for {images} images")
    return Measured(evaluator.main_metric, images, metrics)


def milliseconds(models: Mapping[str, Model], shape: tuple[int, int, int], batch: int) -> dict[str, float]:
    """The median time of one image for each of ``models``, measured in turn so that a busy moment hits them all."""
    images = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(_ROUNDS + 1):
        for name, model in models.items():
            begun = time.perf_counter()
            model(images)
            if round_number:  # the first run also allocates
                times[name].append(time.perf_counter() - begun)
    return {name: 1000 * statistics.median(taken) / batch for name, taken in times.items()}
