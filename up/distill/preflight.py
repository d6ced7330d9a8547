"""Score every teacher on validation images before training, as the student sees them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor

from up.data.loader import EvalLoader
from up.data.records import Batch, Dataset, image_count
from up.data.sampler import EvalBatches
from up.distill.section import mimic_of, weights_of_teachers
from up.distill.teachers import Teacher
from up.distributed import group
from up.distributed.failures import on_all_ranks
from up.engine.evaluate import Evaluation
from up.engine.step import BatchStage
from up.errors import NumericalError, Problem
from up.tasks.experiment import Experiment

IMAGES = 512
"""How many images are enough to tell."""
_BATCH = 64  # images that go in together


@dataclass(frozen=True)
class Score:
    """How many of ``images`` got their own class first; with several heads the mean over them."""

    correct: float
    images: int
    chance: float  # the share that guessing gets right
    looks_like_probabilities: bool = False

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.correct / max(1, self.images)

    @property
    def is_chance(self) -> bool:
        """Whether guessing could have done as well: within two standard deviations of its mean. Of images so few that guessing
        may get all of them right nothing is said."""
        deviation = sqrt(self.chance * (1 - self.chance) / max(1, self.images))
        most = self.chance + 2 * deviation
        return self.top1 <= 100 * most < 100

    def plus(self, other: Score) -> Score:
        """Both together."""
        either = self.looks_like_probabilities and other.looks_like_probabilities
        return Score(self.correct + other.correct, self.images + other.images, max(self.chance, other.chance), either)


def score_teachers(
    experiment: Experiment, teachers: Iterable[Teacher], evaluation: Evaluation, test_data: Dataset, device: torch.device
) -> tuple[list[str], list[str]]:
    """Lines and warnings on every teacher; all ranks take part. Raises ``ConfigError`` for one that only guesses."""
    lines, warnings = [], []
    for teacher in teachers:
        with on_all_ranks():
            teacher.to(device, channels_last=experiment.config.runtime.channels_last)
            own = score(teacher, _sample(experiment, test_data), evaluation.stage, evaluation.precision.autocast())
        found = _of_all_ranks(own)
        if found is None:
            warnings.append(f"{teacher.name}: not scored: no labels, no logits, or logits of other heads than the labels")
            continue
        result = f"{teacher.name}: top-1 {found.top1:.2f} % of {found.images} validation images"
        lines.append(result)
        if found.looks_like_probabilities:
            warnings.append(f"{teacher.name}: its outputs are probabilities; softmax of them is nearly even. Expected logits.")
        if found.is_chance:
            what = (
                f"{result} is no better than guessing ({100 * found.chance:.2f} %). Are these its weights, does it expect other "
                "images (mean, std, channels), other classes in this order?"
            )
            with on_all_ranks():
                if mimic_of(experiment).preflight == "error":
                    place, _ = weights_of_teachers(experiment)[teacher.name]
                    experiment.raise_if_any([Problem(what, key=place, fix="To train anyway: mimic.preflight: warn")])
            warnings.append(what)
    return lines, warnings


def _sample(experiment: Experiment, test_data: Dataset) -> EvalLoader:
    """Images from all over the validation data: a list may be sorted by class."""
    every = max(1, ceil(len(test_data) / IMAGES))
    batches = EvalBatches(len(test_data), batch_size=_BATCH, rank=group.rank(), world_size=group.world_size(), every=every)
    return EvalLoader(test_data, batches, collate=experiment.task.collate)


def _of_all_ranks(own: Score | None) -> Score | None:
    total: Score | None = None
    for each in group.gather_objects(own):
        if each is not None:
            total = each if total is None else total.plus(each)
    return total


def score(teacher: Teacher, batches: Iterable[Batch], stage: BatchStage, autocast: AbstractContextManager[object]) -> Score | None:
    """The teacher's score on ``batches``; None where there are no labels, it gives no logits, or these are of other heads.

    Raises ``NumericalError`` when what it says is not finite.
    """
    total: Score | None = None
    with autocast:
        for batch in batches:
            found = _score(teacher, stage(batch))
            if found is not None:
                total = found if total is None else total.plus(found)
    return total


def _score(teacher: Teacher, batch: Batch) -> Score | None:
    logits, labels = teacher.outputs(batch).get("logits"), batch.get("gt")
    if logits is None or not isinstance(labels, Tensor):
        return None
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    if not all(bool(torch.isfinite(head).all()) for head in heads):
        raise NumericalError(f"{teacher.name}: gives numbers that are not finite, for one of {', '.join(batch['filename'][:3])}, …")
    if not _are_of(labels, heads):
        return None
    shares = [_hits(head, _labels_of(labels, index, len(heads))) / len(heads) for index, head in enumerate(heads)]
    chance = sum(1 / head.shape[1] for head in heads) / len(heads)
    return Score(sum(shares), image_count(batch), chance, all(_are_probabilities(head) for head in heads))


def _are_of(labels: Tensor, heads: list[Tensor]) -> bool:
    """Whether there is a label for each head: one an image, one an image and head, or a set of the classes of the only head."""
    if labels.is_floating_point():
        return len(heads) == 1 and labels.shape == heads[0].shape
    return labels.ndim == 1 if len(heads) == 1 else labels.shape[1:] == (len(heads),)


def _labels_of(labels: Tensor, head: int, heads: int) -> Tensor:
    return labels[:, head] if heads > 1 else labels


def _hits(logits: Tensor, labels: Tensor) -> float:
    """How many images have their label, or one of their labels, first."""
    best = logits.argmax(1)
    hits = best == labels if labels.ndim == 1 else labels.gather(1, best[:, None])[:, 0] > 0.5
    return float(hits.sum())


def _are_probabilities(logits: Tensor) -> bool:
    return bool((logits >= 0).all()) and bool((logits.float().sum(1) - 1).abs().max() < 1e-3)
