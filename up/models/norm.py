"""``normalize:`` of a backbone: convert the BatchNorms of a built network to another kind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, GroupNormAct, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from up.distributed.group import world_size
from up.errors import UserError
from up.registry import Registry
from up.text import some_of

NORMS = Registry(
    "norm",
    {
        "solo_bn": "up.models.norm:SoloBatchNorm",
        "freeze_bn": "up.models.norm:FrozenBatchNorm",
        "caffe_freeze_bn": "up.models.norm:FrozenBatchNorm",
        "gn": "up.models.norm:GroupNorm",
        "sync_bn": "up.models.norm:SyncBatchNorm",
        "pt_sync_bn": "up.models.norm:SyncBatchNorm",
    },
)

_SYNC = "sync_group_size"  # attribute of a BatchNorm to synchronize: the number of processes, 0 for all


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module has batch statistics: BatchNorm of any dimension, timm's with activation, SyncBatchNorm."""
    return isinstance(module, _BatchNorm)


class SoloBatchNorm:
    """BatchNorm over the images of one process: the network's own, with another momentum or eps if given."""

    def __init__(self, *, momentum: float | None = None, eps: float | None = None) -> None:
        self.momentum = _usual(momentum)
        self.eps = eps

    def __call__(self, module: nn.Module) -> nn.Module:
        """Set up every BatchNorm of ``module`` in place and return ``module``."""
        for norm in _batch_norms(module):
            norm.momentum = norm.momentum if self.momentum is None else self.momentum
            norm.eps = norm.eps if self.eps is None else self.eps
        return module


class FrozenBatchNorm:
    """BatchNorm as a fixed affine map: statistics, weight and bias stay as they were loaded.

    ``momentum`` is accepted for old files; it has no effect and gives a warning.
    """

    def __init__(self, *, momentum: float | None = None, eps: float | None = None) -> None:
        self.eps = eps
        if momentum is not None:
            warnings.warn("freeze_bn: momentum has no effect, frozen statistics do not move; leave it out", stacklevel=2)

    def __call__(self, module: nn.Module) -> nn.Module:
        """Freeze every BatchNorm of ``module`` in place and return ``module``; names of tensors stay as they are."""
        for norm in _batch_norms(module):
            if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                raise UserError(f"freeze_bn: {type(norm).__name__} has no frozen form. Expected 1d and 2d BatchNorms.")
            # Only the class changes: tensors, hooks, timm's activation and the fused kernel stay.
            norm.__class__ = _frozen(cast(type, type(norm)))
            norm.eps = norm.eps if self.eps is None else self.eps
            norm.requires_grad_(False).train(norm.training)
        return module


class GroupNorm:
    """GroupNorm instead of every 2d BatchNorm, with its weight and bias (Wu and He 2018)."""

    def __init__(self, *, num_groups: int = 32, eps: float = 1e-5) -> None:
        self.num_groups = num_groups
        self.eps = eps

    def __call__(self, module: nn.Module) -> nn.Module:
        """Replace the norms of ``module`` and return it. Raises ``UserError`` if the groups do not divide the channels."""
        norms = ((name, norm) for name, norm in module.named_modules() if isinstance(norm, nn.BatchNorm2d))
        channels = {name: norm.num_features for name, norm in norms}
        odd = [f"{name} ({count})" for name, count in channels.items() if count % self.num_groups]
        if odd:
            raise UserError(
                f"does not divide the channels of {some_of(odd, 3)}",
                got=self.num_groups,
                expected=f"a divisor of {math.gcd(*channels.values())}",
                key="num_groups",
            )
        return _replace(module, lambda norm: isinstance(norm, nn.BatchNorm2d), self._converted)

    def _converted(self, norm: nn.BatchNorm2d) -> nn.Module:
        made = GroupNormAct(norm.num_features, self.num_groups, eps=self.eps, affine=norm.affine, apply_act=False)
        if isinstance(norm, BatchNormAct2d):
            made.drop, made.act = norm.drop, norm.act
        else:
            made = nn.GroupNorm(self.num_groups, norm.num_features, eps=self.eps, affine=norm.affine)
        if norm.affine:
            made.weight, made.bias = norm.weight, norm.bias
        return cast("nn.Module", made.train(norm.training))


class SyncBatchNorm:
    """BatchNorm over the images of ``group_size`` processes, of all by default.

    Processes on the CPU, for which torch has no such norm, use their own batch.
    """

    def __init__(self, *, momentum: float | None = None, eps: float | None = None, group_size: int | None = None) -> None:
        self.solo = SoloBatchNorm(momentum=momentum, eps=eps)
        self.group_size = group_size

    def __call__(self, module: nn.Module) -> nn.Module:
        """Mark the BatchNorms; ``sync_batchnorms`` converts them once the network is on its device."""
        for norm in _batch_norms(self.solo(module)):
            setattr(norm, _SYNC, self.group_size or 0)
        return module


def sync_batchnorms(module: nn.Module) -> nn.Module:
    """Convert the BatchNorms that ``SyncBatchNorm`` marked, once the network is on its device and before DDP wraps it.

    Returns the network. Does nothing in one process. Processes on the CPU get a warning: torch's SyncBatchNorm does not
    take their input in a process group. Raises ``UserError`` for a group size that does not divide the world size.
    """
    marked = [norm for norm in _batch_norms(module) if hasattr(norm, _SYNC)]
    if world_size() == 1 or not marked:
        return module
    if any(tensor.device.type == "cpu" for norm in marked for tensor in norm.buffers(recurse=False)):
        warnings.warn("sync_bn: torch has none on the CPU; every process normalizes by its own batch", stacklevel=2)
        return module
    group_of = cache(_process_group)
    return _replace(
        module, lambda norm: hasattr(norm, _SYNC), lambda norm: convert_sync_batchnorm(norm, group_of(getattr(norm, _SYNC)))
    )


def special_bn_init(module: nn.Module, *, eps: float = 1e-3, momentum: float = 0.03) -> None:
    """Set eps and momentum of all BatchNorms (``runtime.special_bn_init``); the defaults are UP's."""
    SoloBatchNorm(eps=eps, momentum=momentum)(module)


@torch.no_grad()
def average_batchnorm_statistics(module: nn.Module, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Average running means and variances over the ranks, before evaluation (``runtime.async_norm``).

    ``sum_over_ranks`` (one all-reduce) gets a float32 vector of all statistics and returns the sum over the ranks.
    Frozen norms keep theirs.
    """
    training = (norm for norm in _batch_norms(module) if norm.training)
    statistics = (tensor for norm in training for tensor in (norm.running_mean, norm.running_var))
    held = [tensor for tensor in statistics if tensor is not None]
    if not held:
        return
    one = torch.ones(1, device=held[0].device)  # sums up to the number of ranks
    total = sum_over_ranks(torch.cat([*(tensor.float().flatten() for tensor in held), one]))
    means = torch.split(total[:-1] / total[-1], [tensor.numel() for tensor in held])
    for tensor, mean in zip(held, means, strict=True):
        tensor.copy_(mean)


class _StaysInEvaluation(nn.Module):
    """Mixin of norms that use their stored statistics in training too."""

    def train(self, mode: bool = True) -> _StaysInEvaluation:
        super().train(mode)  # timm's activation and dropout inside follow the mode
        self.training = False
        return self


@cache
def _frozen(kind: type) -> type:
    """Return the class of a BatchNorm that never updates its statistics."""
    return kind if issubclass(kind, _StaysInEvaluation) else type(f"Frozen{kind.__name__}", (_StaysInEvaluation, kind), {})


def _batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    return (child for child in module.modules() if isinstance(child, _BatchNorm))


def _replace(module: nn.Module, is_wanted: Callable[[_BatchNorm], bool], make: Callable[[Any], nn.Module]) -> nn.Module:
    """Replace every wanted BatchNorm in ``module`` by the result of ``make``."""
    if isinstance(module, _BatchNorm):
        return make(module) if is_wanted(module) else module
    for name, child in module.named_children():
        made = _replace(child, is_wanted, make)
        if made is not child:
            module.add_module(name, made)
    return module


def _process_group(size: int) -> dist.ProcessGroup | None:
    """Create this rank's group of ``size`` neighbours, None for all ranks; a collective call."""
    if size in (0, world_size()):
        return None
    if world_size() % size:
        raise UserError(got=size, expected=f"a divisor of the {world_size()} processes", key="group_size")
    own, _ = dist.new_subgroups(size)
    return own


def _usual(momentum: float | None) -> float | None:
    """Return ``momentum``, with a warning if it seems to follow the other convention."""
    if momentum is not None and momentum > 0.5:
        warnings.warn(
            f"normalize: momentum {momentum:g} is torch's weight of the newest batch: running statistics will be close to "
            f"those of the last batch. For a slow average set {1 - momentum:.2g}; torch's default is 0.1.",
            stacklevel=3,
        )
    return momentum
