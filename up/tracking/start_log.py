"""Tables for the start of the log: modules of the net, and groups of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.optim import Optimizer

from up.models.net import Net, model_summary
from up.optim import group_table


def start_lines(net: Net, optimizer: Optimizer) -> Iterator[str]:
    """Two tables: the modules of the net, and the groups of the optimizer."""
    modules = [(row.name, row.type, f"{row.parameters:,}", f"{row.trainable:,}") for row in model_summary(net)]
    yield from _aligned(("module", "type", "parameters", "trainable"), modules, texts=2)
    groups = [
        (row.rule, f"{row.tensors:,}", f"{row.parameters:,}", f"{row.lr:.4g}", f"{row.weight_decay:.4g}")
        for row in group_table(optimizer, net)
    ]
    yield from _aligned(("parameter group", "tensors", "parameters", "lr", "weight decay"), groups, texts=1)


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> Iterator[str]:
    """The rows in columns as wide as what is in them; the first ``texts`` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = zip(row, widths, strict=True)
        yield "  ".join(f"{cell:<{width}}" if at < texts else f"{cell:>{width}}" for at, (cell, width) in enumerate(cells))
