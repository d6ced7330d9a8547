"""Progress of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from up.text import count


def progress(step: int, total: int, updates_per_epoch: int) -> str:
    """``9 of 12 epochs``, ``2.5 of 12 epochs (step 15 of 72)``; ``40 of 100 steps`` where the run is no whole number of epochs."""
    if total % updates_per_epoch:
        return f"{step:,} of {count(total, 'step')}"
    epochs = f"{step / updates_per_epoch:.4g} of {count(total // updates_per_epoch, 'epoch')}"
    return epochs if step % updates_per_epoch == 0 else f"{epochs} (step {step:,} of {total:,})"


def best_of(best: Mapping[str, Any], updates_per_epoch: int) -> str:
    """``best top1 97.20 at epoch 9``; nothing where there was no evaluation. ``best`` is that of a checkpoint."""
    if "metric" not in best:
        return ""
    step = best["step"]
    at = f"epoch {step // updates_per_epoch}" if step % updates_per_epoch == 0 else f"step {step:,}"
    return f"best {best.get('name', 'metric')} {best['metric']:.2f} at {at}"
