"""BatchNorm statistics on many ranks: each rank collects its own, all evaluate with the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from up.distributed.group import gather_objects, is_parallel, rank, sum_over_ranks, world_size
from up.engine.ema import Ema, NoEma
from up.models.norm import average_batchnorm_statistics, is_batch_norm
from up.types import StateDict


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
