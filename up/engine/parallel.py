"""The net on many ranks: replicated (ddp) or sharded (fsdp), its gradients averaged in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from up.distributed.group import is_parallel, world_size
from up.engine.buffers import unchanged_buffers
from up.text import some_of
from up.types import Kwargs

# Running statistics are made equal before an evaluation; other buffers are equal on all ranks. torch 2.14 renamed the argument.
_IS_NEW = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_BROADCAST: Kwargs = {"forward_sync_buffers" if _IS_NEW else "broadcast_buffers": False}
BLOCK = 1_000_000  # parameters from which a block of a network is sharded separately


def on_many_ranks(
    net: nn.Module,
    *,
    parallel: Literal["ddp", "fsdp"],
    static_graph: bool,
    accumulate: int,
    find_unused: bool,
    first_loss: Callable[[], torch.Tensor] | None,
) -> tuple[nn.Module, list[str]]:
    """Wrap ``net``, which is on its device, for many ranks; returns ``net`` itself in one process, and remarks for the log.

    ``first_loss`` computes a loss through ``net`` as a step does: parameters that get no gradient from it (an unused output
    of the backbone) are named once, and only then ddp looks for them in every step. ``find_unused`` makes it look in any case.
    ``static_graph`` spares ddp the search, and is left out where it does not hold: with such parameters, and where gradients
    accumulate.
    """
    if not is_parallel() or not any(parameter.requires_grad for parameter in net.parameters()):
        return net, []
    broadcast_weights(net)
    unused = unused_parameters(net, first_loss) if first_loss is not None else []
    remarks = [f"no gradient reaches {some_of(unused, 5)}; is an output of a module unused?"] if unused else []
    if parallel == "fsdp":
        return sharded(net), remarks
    searches = find_unused or first_loss is None or bool(unused)
    if static_graph and (unused or accumulate > 1):
        why = "some parameters get no gradient" if unused else "gradients accumulate (trainer.accumulate)"
        remarks.append(f"runtime.static_graph is left out: it does not hold where {why}")
        static_graph = False
    device = next(net.parameters()).device
    replicated = DistributedDataParallel(
        net,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=searches and not static_graph,
        static_graph=static_graph,
        gradient_as_bucket_view=True,
        **_NO_BUFFER_BROADCAST,
    )
    return replicated, remarks


@torch.no_grad()
def broadcast_weights(net: nn.Module) -> None:
    """Send the weights and buffers of rank 0 to all ranks: hosts may have read different files."""
    for tensor in [*net.parameters(), *net.buffers()]:
        sent = tensor.contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)


def unused_parameters(net: nn.Module, first_loss: Callable[[], torch.Tensor]) -> list[str]:
    """Name the parameters that train but get no gradient; ``net`` and its buffers are unchanged afterwards."""
    with unchanged_buffers(net):
        first_loss().backward()  # type: ignore[no-untyped-call]
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    net.zero_grad(set_to_none=True)
    return names


def sharded(net: nn.Module, block: int = BLOCK) -> nn.Module:
    """Shard the parameters, large blocks one by one, so that only one of them is whole at a time (Zhao et al. 2023)."""
    net.to(memory_format=torch.contiguous_format)  # fsdp cuts along the first dimension and supports no other order
    kind = next(net.parameters()).device.type
    mesh = init_device_mesh(kind, (world_size(),))
    for module in _blocks(net, block):
        fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def _blocks(module: nn.Module, least: int) -> Iterator[nn.Module]:
    """List the members of lists and sequences with at least ``least`` parameters, inner ones first."""
    for child in module.children():
        yield from _blocks(child, least)
        is_member = isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(child, nn.ModuleList)
        if is_member and sum(parameter.numel() for parameter in child.parameters()) >= least:
            yield child
