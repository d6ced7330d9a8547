"""Fit a step into memory: where it runs out, the same step is repeated in smaller micro-batches, for the rest of the run.

The gradients of the parts, weighed by their images, add up to those of the whole, so only batch normalisation (over fewer images)
and the masks of dropout differ. The images are mixed before they are cut. All ranks agree before they exchange gradients; a rank
whose memory runs out in the exchange itself, or in a forward pass that waits for other ranks, cannot repeat the step alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from up.data.records import Batch, image_count
from up.data.sampler import Share
from up.distributed.failures import on_all_ranks
from up.distributed.group import is_parallel, maxima_over_ranks
from up.errors import UserError, out_of_memory
from up.models.norm import is_batch_norm
from up.text import count
from up.types import StateDict

OnOutOfMemory = Literal["split", "stop"]


class MicroBatch(NamedTuple):
    """A micro-batch as it goes through the net, its weight in the step, and whether it is the rank's last in the step."""

    batch: Batch
    share: Share
    is_last: bool


class _AnotherRankRanOut(Exception):
    """Raised on the ranks that had enough memory for a step when another had not."""


class _Guard:
    """The context of a part: a class costs a third of a generator."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        return self._memory.caught(error)


class Memory:
    """The most ``images`` of a micro-batch that fit into memory, None as long as all do; the same on all ranks.

    ``policy`` ``stop`` raises instead. ``ranks_meet``: the loss exchanges numbers between the ranks in every micro-batch.
    ``why_whole`` says why ranks do not split steps although ``policy`` does; else it is empty.
    ``strike``, a fault of a test, gets the step and the images of a forward pass.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        policy: OnOutOfMemory = "split",
        ranks_meet: bool = False,
        strike: Callable[[int, int], object] | None = None,
    ) -> None:
        self.images: int | None = None
        self._net, self._strike = net, strike
        meeting = "a loss of several terms" if ranks_meet else _waits_in_forward(net)
        self.why_whole = meeting if policy == "split" and is_parallel() else ""
        self._splits = policy == "split" and not self.why_whole
        self._least = 2 if any(is_batch_norm(module) for module in net.modules()) else 1  # it cannot train on one image
        self._error: Exception | None = None
        self._step = 0
        self._has_agreed = False
        self._guard = _Guard(self)
        buffers = [buffer for buffer in net.buffers() if buffer.device.type != "meta"] if self._splits else []
        kinds = dict.fromkeys(buffer.dtype for buffer in buffers)
        self._buffers = [[buffer for buffer in buffers if buffer.dtype == kind] for kind in kinds]
        self._before = [[buffer.detach().clone() for buffer in group] for group in self._buffers]

    def begin(self, step: int) -> None:
        """Remember the buffers of the net, such as running statistics, which a repeated step must not update twice."""
        self._step, self._error, self._has_agreed = step, None, False
        if self._buffers:
            _copy(self._before, self._buffers)

    def cut(self, images: int) -> list[slice]:
        """Cut the rows of a micro-batch of ``images`` into nearly equal parts that fit."""
        most = images if self.images is None else self.images
        parts = max(1, min(-(-images // most), images // self._least))
        return [slice(images * part // parts, images * (part + 1) // parts) for part in range(parts)]

    def guard(self) -> _Guard:
        """Catch an out-of-memory error of a part, on this rank or another: ``ran_out`` is true afterwards, on every rank."""
        return self._guard

    def caught(self, error: BaseException | None) -> bool:
        """Check whether ``error`` means out of memory in a part that can be repeated, and tell the other ranks."""
        if error is not None:
            is_ours = isinstance(error, _AnotherRankRanOut) or (out_of_memory(error) is not None and not self._has_agreed)
            if not isinstance(error, Exception) or not is_ours or not self._splits:
                return False
            self._error = error.with_traceback(None)  # whose frames hold the tensors
        if self._error is not None and is_parallel() and not self._has_agreed:
            maxima_over_ranks([1])
        return error is not None

    def agree(self, part: MicroBatch) -> None:
        """Agree with the other ranks, before gradients are exchanged, that every forward pass of this step fitted."""
        if self._strike is not None:
            self._strike(self._step, image_count(part.batch))
        if self._splits and is_parallel() and part.is_last:
            self._has_agreed = True
            if maxima_over_ranks([0])[0]:
                raise _AnotherRankRanOut

    @property
    def ran_out(self) -> bool:
        """Whether this step ran out of memory, on any rank."""
        return self._error is not None

    def halve(self, images: int) -> int:
        """Allow half as many images as the largest part of a step with micro-batches of ``images`` had; returns what it had.

        Frees the memory of the attempt and restores the buffers. Raises ``UserError`` on every rank where parts cannot be smaller.
        """
        _copy(self._buffers, self._before)
        reason = None if self._error is None else out_of_memory(self._error)
        self._error = None
        largest = maxima_over_ranks([max(rows.stop - rows.start for rows in self.cut(images))])[0]
        with on_all_ranks():
            if largest <= self._least and reason is not None:
                what = f"out of memory ({reason}) with {count(largest, 'image')} in a micro-batch, which cannot be smaller"
                raise UserError(what, fix="Make the images smaller, or set runtime.amp: bf16 or grad_checkpointing: true.")
        self.images = max(self._least, -(-largest // 2))
        free_memory()
        return largest

    def differences(self, before: int) -> str:
        """Say for the log whether parts of ``images`` instead of ``before`` images give other numbers."""
        found = []
        if self._least > 1 and any(is_batch_norm(module) and module.training for module in self._net.modules()):
            found.append(f"batch normalisation uses the statistics of {self.images} images instead of {before}")
        if any(_draws(module) for module in self._net.modules()):
            found.append("dropout and drop path draw other masks")
        return (
            f"the gradients differ from those of one pass: {'; '.join(found)}"
            if found
            else "the gradients are the same but for rounding"
        )

    def state_dict(self) -> StateDict:
        """Return the most images of a micro-batch, if memory ran out before."""
        return {} if self.images is None else {"images": self.images}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue with the micro-batches of an earlier part of the run."""
        self.images = state.get("images") if self._splits else None


def free_memory() -> None:
    """Free what no tensor uses, after memory ran out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _waits_in_forward(net: nn.Module) -> str:
    """Say why a rank that repeats a step would leave the others waiting, or its wrapper in the middle of a step; else empty."""
    is_ddp = isinstance(net, DistributedDataParallel)
    reasons = {
        "runtime.parallel: fsdp": isinstance(net, FSDPModule),
        "parameters that get no gradient (runtime.allow_dead_parameter, finetune.probe or unfreeze)": is_ddp
        and net.find_unused_parameters,
        "runtime.static_graph": is_ddp and net.static_graph,
        "synchronized BatchNorms": any(isinstance(module, nn.SyncBatchNorm) for module in net.modules()),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _draws(module: nn.Module) -> bool:
    return (
        any(isinstance(share := getattr(module, name, 0.0), float) and share > 0 for name in ("p", "drop_prob")) and module.training
    )


def _copy(targets: list[list[Tensor]], sources: list[list[Tensor]]) -> None:
    with torch.no_grad():
        for mine, theirs in zip(targets, sources, strict=True):
            torch._foreach_copy_(mine, theirs)
