"""What a teacher is worth, measured before it teaches: its top-1 on validation images as the student gets them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from up.data.records import Batch, image_count
from up.distill.teachers import Teacher
from up.engine.step import BatchStage
from up.errors import NumericalError

IMAGES = 512
"""How many images are enough to tell."""


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


def score(teacher: Teacher, batches: Iterable[Batch], stage: BatchStage, autocast: AbstractContextManager[Any]) -> Score | None:
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
    logits, labels = teacher.logits(batch), batch.get("gt")
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
