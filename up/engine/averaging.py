"""Averages of weights: the mean of checkpoints, the line between two of them, and BatchNorm statistics for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from up.types import Record

Weights = Mapping[str, Tensor]


def mean_of(states: Sequence[Weights]) -> dict[str, Tensor]:
    """Average floating tensors in double precision; others are those of the first."""
    first = states[0]
    if len(states) == 1:
        return dict(first)
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def between(start: Weights, end: Weights, alpha: float) -> dict[str, Tensor]:
    """Compute start · (1 − alpha) + end · alpha; exactly the ends at 0 and 1 (WiSE-FT, Wortsman et al. 2021, eq. 1)."""
    if alpha in (0.0, 1.0):
        return dict(end if alpha else start)
    return {
        name: (start[name].double() * (1 - alpha) + value.double() * alpha).to(value.dtype) if value.is_floating_point() else value
        for name, value in end.items()
    }


def greedy_soup(count: int, first: float, measure: Callable[[Sequence[int]], float]) -> tuple[list[int], float]:
    """Choose members of a soup among ``count`` candidates, best first; returns them and their metric, never below ``first``.

    ``first`` is the metric of candidate 0, and ``measure`` that of the mean of several: a candidate joins if the mean with it is
    no worse (Wortsman et al. 2022, recipe 1).
    """
    members, best = [0], first
    for candidate in range(1, count):
        metric = measure([*members, candidate])
        if metric >= best:
            members, best = [*members, candidate], metric
    return members, best


@torch.no_grad()
def recompute_statistics(net: nn.Module, batches: Iterable[Record], forward: Callable[[Record], object]) -> bool:
    """Recompute the running statistics of BatchNorms as the mean over ``batches`` (Izmailov et al. 2018); False without any.

    Only BatchNorms are in training mode, and only those that were: the statistics of frozen ones stay. All else, such as dropout,
    is in evaluation mode.
    """
    norms = [
        module for module in net.modules() if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    if not norms:
        return False
    modes, momenta = {module: module.training for module in net.modules()}, [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, equally weighted
        norm.training = True
    for batch in batches:
        forward(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
    return True
