"""The net on many ranks: replicated (ddp) or sharded (fsdp), its gradients averaged in the backward pass; its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from up.distributed.group import gather_objects, is_parallel, rank, sum_over_ranks, world_size
from up.engine.ema import Ema, NoEma
from up.models.norm import average_batchnorm_statistics, is_batch_norm
from up.text import some_of
from up.types import Kwargs, StateDict

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
    with unchanged_buffers(net), torch.compiler.set_stance("force_eager"):  # two images: not worth a compiled form
        first_loss().backward()  # type: ignore[no-untyped-call]
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    net.zero_grad(set_to_none=True)
    return names


def sharded(net: nn.Module) -> nn.Module:
    """Shard the parameters, large blocks one by one, so that only one of them is whole at a time (Zhao et al. 2023)."""
    net.to(memory_format=torch.contiguous_format)  # fsdp cuts along the first dimension and supports no other order
    kind = next(net.parameters()).device.type
    mesh = init_device_mesh(kind, (world_size(),))
    for module in blocks_of(net):
        fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """List the modules that are sharded one by one, inner ones first: large members of lists and sequences."""
    for child in module.children():
        yield from blocks_of(child)
        is_member = isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(child, nn.ModuleList)
        if is_member and sum(parameter.numel() for parameter in child.parameters()) >= BLOCK:
            yield child


class RankBuffers:
    """The running statistics of a network and of its moving average, which differ from rank to rank.

    Training writes running statistics and reads none, so ranks may differ between evaluations. Before an evaluation they are
    made equal: to those of rank 0, which are saved, or with ``average`` (``runtime.async_norm``) to the mean over the ranks.
    The mean continues from the statistics of each rank, so a checkpoint then carries those of every rank.
    """

    def __init__(self, model: nn.Module, ema: Ema | NoEma, *, average: bool) -> None:
        self._model, self._ema = model, ema
        self._average = average and is_parallel()

    @torch.no_grad()
    def equalize(self) -> None:
        """Give all ranks the same statistics; one collective operation for all tensors. The network is in training mode."""
        held = self._held()
        if not is_parallel() or not held:
            return
        if self._average:
            average_batchnorm_statistics(self._model, sum_over_ranks)
            if isinstance(self._ema, Ema):
                with self._ema.applied_to(self._model):
                    average_batchnorm_statistics(self._model, sum_over_ranks)
            return
        joined = torch.cat([tensor.float().flatten() for tensor in held])
        dist.broadcast(joined, src=0)
        self._fill(held, joined)

    def state_dict(self) -> StateDict:
        """Return, with ``average``, the statistics of every rank; a collective operation."""
        held = self._held()
        if not self._average or not held:
            return {}
        mine = torch.cat([tensor.float().flatten() for tensor in held]).cpu()
        return {"ranks": gather_objects(mine)}

    @torch.no_grad()
    def load_state_dict(self, state: StateDict) -> None:
        """Restore this rank's statistics, if the same number of ranks saved them."""
        ranks = state.get("ranks", [])
        if self._average and len(ranks) == world_size():
            held = self._held()
            self._fill(held, ranks[rank()].to(held[0].device))

    def _held(self) -> list[Tensor]:
        """List the running statistics of the network, then those of the average."""
        names = [
            f"{name}.{statistic}" if name else statistic
            for name, module in self._model.named_modules()
            if is_batch_norm(module) and module.training  # a frozen one keeps what was loaded
            for statistic in ("running_mean", "running_var")
            if getattr(module, statistic) is not None
        ]
        sources = [dict(self._model.named_buffers()), self._ema.state_dict()]
        return [source[name] for source in sources for name in names if name in source]

    @staticmethod
    def _fill(held: list[Tensor], joined: Tensor) -> None:
        pieces = torch.split(joined, [tensor.numel() for tensor in held])
        for tensor, piece in zip(held, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


@contextmanager
def unchanged_buffers(net: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``net``, such as running statistics, after the block."""
    before = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(before[name])
