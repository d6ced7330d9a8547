"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from up.data.records import Batch, Sample
from up.errors import UserError


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack ``samples``, which have the same fields.

    image (B, C, H, W); gt int64 (B,) or (B, heads), or float32 (B, classes), absent when the data has no labels; other
    integers (index, seed, and dominant after mixing) int64 (B,); all else a list. Raises ``UserError`` when images are
    of different sizes.
    """
    _expect_one_size(samples)
    batch = Batch()
    for field in samples[0]:
        values = [sample[field] for sample in samples]
        batch[field] = _stacked(field, values)
    return batch


def _stacked(field: str, values: list[Any]) -> Any:
    if field == "image":
        return default_collate(values)  # in a worker it writes straight into shared memory
    if field == "gt":
        return torch.stack(values).float() if torch.is_tensor(values[0]) else torch.tensor(values, dtype=torch.int64)
    if isinstance(values[0], int):
        return torch.tensor(values, dtype=torch.int64)
    return values


def _expect_one_size(samples: Sequence[Sample]) -> None:
    first = samples[0]
    for other in samples:
        if other.image.shape != first.image.shape or other.image.dtype != first.image.dtype:
            raise UserError(
                f"images of one batch differ: {first.filename} is {_form(first.image)}, {other.filename} is "
                f"{_form(other.image)}. Expected one size: end the transformer in torch_random_resized_crop, or in "
                "torch_resize and torch_center_crop."
            )


def _form(image: torch.Tensor) -> str:
    height, width = image.shape[-2:]
    return f"{width} x {height} ({image.shape[0]} channels, {str(image.dtype).removeprefix('torch.')})"


def without_bad(batch: Batch) -> Batch:
    """The batch without the rows whose image was replaced, so that none is counted twice; maybe of 0 rows."""
    bad = batch.get("bad", [])
    if not any(bad):
        return batch
    kept = [row for row, reason in enumerate(bad) if not reason]
    rows = torch.tensor(kept, dtype=torch.int64)
    picked = Batch()
    for field, value in batch.items():
        picked[field] = value[rows] if torch.is_tensor(value) else [value[row] for row in kept]
    return picked
