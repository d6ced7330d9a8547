"""Lines of the log about a run as a whole: its net and optimizer, its progress, its best result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.optim import Optimizer

from up.intervals import Interval
from up.models.net import Net, model_summary
from up.optim import group_table
from up.text import count
from up.types import StateDict


def net_and_groups(net: Net, optimizer: Optimizer) -> Iterator[str]:
    """Format two tables: the modules of the net, and the groups of the optimizer."""
    modules = [(row.name, row.type, f"{row.parameters:,}", f"{row.trainable:,}") for row in model_summary(net)]
    yield from _aligned(("module", "type", "parameters", "trainable"), modules, texts=2)
    groups = [
        (row.rule, f"{row.tensors:,}", f"{row.parameters:,}", f"{row.lr:.4g}", f"{row.weight_decay:.4g}")
        for row in group_table(optimizer, net)
    ]
    yield from _aligned(("parameter group", "tensors", "parameters", "lr", "weight decay"), groups, texts=1)


def progress(step: int, total: int, steps_per_epoch: int) -> str:
    """Format ``9 of 12 epochs``, ``2.5 of 12 epochs (step 15 of 72)``, or ``40 of 100 steps`` for a run of no whole epochs."""
    if total % steps_per_epoch:
        return f"{step:,} of {count(total, 'step')}"
    epochs = f"{step / steps_per_epoch:.4g} of {count(total // steps_per_epoch, 'epoch')}"
    return epochs if step % steps_per_epoch == 0 else f"{epochs} (step {step:,} of {total:,})"


def best_of(best: StateDict, steps_per_epoch: int, unit: str) -> str:
    """Format ``best top1 97.20 % (93.6–97.7, n = 359) at epoch 9`` from the ``best`` of a checkpoint; empty without an evaluation.

    ``unit`` is that of the task. Checkpoints of earlier versions have no interval.
    """
    if "metric" not in best:
        return ""
    step = best["step"]
    at = f"epoch {step // steps_per_epoch}" if step % steps_per_epoch == 0 else f"step {step:,}"
    value = f"{best['metric']:.2f}{' %' if unit == 'percent' else ''}"
    interval = [str(Interval(*best["interval"]))] if "interval" in best else []
    return " ".join(["best", best.get("name", "metric"), value, *interval, "at", at])


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> Iterator[str]:
    """Align columns, the first ``texts`` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = zip(row, widths, strict=True)
        yield "  ".join(f"{cell:<{width}}" if at < texts else f"{cell:>{width}}" for at, (cell, width) in enumerate(cells))
