"""Labels of batches in words, for pages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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
        heads = [names if isinstance(names, list) else None for names in class_names or [None] * labels.shape[1]]
        return [[SoftLabel(_name(names, label), 1.0) for names, label in zip(heads, row, strict=True)] for row in labels.tolist()]
    return [[SoftLabel(_name(class_names, label), 1.0)] for label in labels.tolist()]


def _name(names: Sequence[object] | None, label: int) -> str:
    return str(names[label]) if names is not None and 0 <= label < len(names) else f"class {label}"
