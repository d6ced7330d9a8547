"""Top-1 of a teacher on validation images, to tell a trained teacher from one that guesses."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from torch import Tensor

from up.tasks.cls.model.heads import heads_of
from up.tasks.task import TeacherScore
from up.types import Kwargs


class Top1(NamedTuple):
    """Number of ``images`` whose label has the largest logit; with several heads the mean over them."""

    correct: float = 0.0
    images: int = 0
    chance: float = 0.0  # the share that guessing predicts correctly
    are_probabilities: bool = True


class TeacherTop1:
    """Evaluator of the logits of a teacher; images whose labels do not fit its heads are not counted."""

    main_metric = "top1"

    def __init__(self) -> None:
        self.total = Top1()

    def reset(self) -> None:
        """Forget everything collected."""
        self.total = Top1()

    def update(self, outputs: Kwargs, batch: Kwargs) -> None:
        """Collect one batch."""
        logits, labels = outputs.get("logits"), batch.get("gt")
        if logits is None or not isinstance(labels, Tensor):
            return
        heads = heads_of(logits)
        if not _fit(labels, heads):
            return
        columns = [labels] if len(heads) == 1 else labels.unbind(1)
        correct = sum(_hits(head, column) for head, column in zip(heads, columns, strict=True)) / len(heads)
        chance = sum(map(_chance, heads, columns)) / len(heads)
        self.merge([self.total, Top1(correct, len(labels), chance, all(map(_are_probabilities, heads)))])

    def state(self) -> Top1:
        """Return everything collected on this rank."""
        return self.total

    def merge(self, states: Sequence[Top1]) -> None:
        """Replace what was collected by the states of all ranks."""
        images = sum(each.images for each in states)
        chance = sum(each.chance * each.images for each in states) / max(1, images)
        self.total = Top1(sum(each.correct for each in states), images, chance, all(each.are_probabilities for each in states))

    def compute(self) -> dict[str, float]:
        """Compute top-1 in percent."""
        return {"top1": 100 * self.total.correct / max(1, self.total.images)}

    def score(self) -> TeacherScore | None:
        """Describe the result; None if no image had labels that fit.

        A top-1 within two standard deviations of chance is guessing, unless the images are so few that chance may predict all.
        """
        _, images, chance, are_probabilities = self.total
        if not images:
            return None
        percent, most = self.compute()["top1"], 100 * (chance + 2 * sqrt(chance * (1 - chance) / images))
        return TeacherScore(
            f"top-1 {percent:.2f} % of {images} validation images",
            guessing=f"{100 * chance:.2f} %" if percent <= most < 100 else "",
            warning="its outputs are probabilities; softmax of them is nearly even. Expected logits." if are_probabilities else "",
        )


def _fit(labels: Tensor, heads: Sequence[Tensor]) -> bool:
    """Compare labels with the heads: one an image, one an image and head, or a set of the classes of the only head."""
    if labels.is_floating_point():
        return len(heads) == 1 and labels.shape == heads[0].shape
    return labels.ndim == 1 if len(heads) == 1 else labels.shape[1:] == (len(heads),)


def _hits(logits: Tensor, labels: Tensor) -> float:
    """Count the images whose most probable class is their label, or one of their labels."""
    best = logits.argmax(1)
    hits = best == labels if labels.ndim == 1 else labels.gather(1, best[:, None])[:, 0] > 0.5
    return float(hits.sum())


def _chance(logits: Tensor, labels: Tensor) -> float:
    """Compute the share of images for which a random class is correct: the label, or one of the set of labels."""
    return 1 / logits.shape[1] if labels.ndim == 1 else float((labels > 0.5).double().mean())


def _are_probabilities(logits: Tensor) -> bool:
    return bool((logits >= 0).all()) and bool((logits.float().sum(1) - 1).abs().max() < 1e-3)
