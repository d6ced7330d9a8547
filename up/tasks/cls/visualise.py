"""Labels of batches in words, figures and scores of evaluations, for pages and trackers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from up.tasks.cls.evaluate.confusion import LARGEST, confusion_figure, confusion_matrix
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.task import SoftLabel

_SHOWN = 10  # classes of a soft label


def targets_of(gt: Tensor, class_names: Sequence[object] | None) -> list[list[SoftLabel]]:
    """List the classes of labels (B,), of several heads (B, heads), or of soft and multi-hot ones (B, classes)."""
    labels = gt.detach().cpu()
    if labels.is_floating_point():
        order = labels.argsort(dim=1, descending=True, stable=True)[:, :_SHOWN].tolist()
        weights = labels.tolist()
        return [
            [SoftLabel(_name(class_names, label), row[label]) for label in first if row[label] > 0]
            for first, row in zip(order, weights, strict=True)
        ]
    if labels.ndim == 2:
        heads = [_of_head(class_names, number) for number in range(labels.shape[1])]
        return [[SoftLabel(_name(names, label), 1.0) for names, label in zip(heads, row, strict=True)] for row in labels.tolist()]
    return [[SoftLabel(_name(class_names, label), 1.0)] for label in labels.tolist()]


def _name(names: Sequence[object] | None, label: int) -> str:
    return str(names[label]) if names is not None and 0 <= label < len(names) else f"class {label}"


def figures_of(evaluator: ImageNetEvaluator, class_names: Sequence[object] | None) -> dict[str, bytes]:
    """Draw the confusion matrix of each head that has a label for each image, and at most ``LARGEST`` classes."""
    heads = evaluator.predictions.heads
    drawn = {}
    for number, head in enumerate(heads):
        if head.gt is not None and head.gt.ndim == 1 and len(head.gt) and head.classes <= LARGEST:
            names = names_of(class_names, number, head.classes)
            drawn[f"confusion_matrix{_suffix(number, heads)}"] = confusion_figure(confusion_matrix(head), names)
    return drawn


def scores_of(
    evaluator: ImageNetEvaluator, class_names: Sequence[object] | None
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Return labels and scores of each class of each head, where all scores are kept (``save_score``, sets of labels)."""
    heads = evaluator.predictions.heads
    found = {}
    for number, head in enumerate(heads):
        if head.gt is None or head.scores is None or not len(head.gt):
            continue
        names = names_of(class_names, number, head.classes)
        for label in range(head.classes):
            is_of = head.gt == label if head.gt.ndim == 1 else head.gt[:, label].astype(bool)
            found[f"{names[label]}{_suffix(number, heads)}"] = is_of, head.scores[:, label].astype(np.float64)
    return found


def names_of(class_names: Sequence[object] | None, number: int, classes: int) -> list[str]:
    """Return the names of the classes of a head, ``class N`` where there are none."""
    own = _of_head(class_names, number)
    return [_name(own, label) for label in range(classes)]


def _of_head(class_names: Sequence[object] | None, number: int) -> Sequence[object] | None:
    """Return the class names of a head, from a list for each head or one list for the only head; None without names."""
    if not class_names:
        return None
    lists = class_names if isinstance(class_names[0], list) else [class_names]
    found = lists[number] if number < len(lists) else None
    return found if isinstance(found, list) else None


def _suffix(number: int, heads: Sequence[object]) -> str:
    return f" (head {number})" if len(heads) > 1 else ""
