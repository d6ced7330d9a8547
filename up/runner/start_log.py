"""What a run says before its first step: what the net is made of, and which parameters train how."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer

from up.models.net import Net, model_summary
from up.optim import group_table


def start_lines(net: Net, optimizer: Optimizer) -> Iterator[str]:
    """Two tables: the modules of the net, and the groups of the optimizer."""
    yield f"{'module':<20}{'type':<30}{'parameters':>14}{'trainable':>14}"
    for module in model_summary(net):
        yield f"{module.name:<20}{module.type:<30}{module.parameters:>14,}{module.trainable:>14,}"
    yield f"{'parameter group':<40}{'tensors':>10}{'parameters':>14}{'lr':>11}{'weight decay':>14}"
    for group in group_table(optimizer, net):
        yield f"{group.rule:<40}{group.tensors:>10,}{group.parameters:>14,}{group.lr:>11.4g}{group.weight_decay:>14.4g}"
