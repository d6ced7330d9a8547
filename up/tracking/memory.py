"""Hooks about memory: report its use, and reduce it."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from up.config.argument import NoEffect
from up.engine.hooks import Hook, Outline, StepReport
from up.tracking.log import LOGGER
from up.tracking.speed import process_peak

_MB = 1e6
_ALL_BLOCKS = "every block of the backbone is recomputed"


class MemoryCheckpoint(Hook):
    """Checkpoint gradients of the backbone (Chen et al. 2016, arXiv 1604.06174): activations inside its blocks are not kept.

    They are recomputed in the backward pass, which takes about a third more time and far less memory. Loss and gradients
    stay the same; running statistics of batch normalisation see every batch twice, as if their momentum were larger. The
    same as ``grad_checkpointing: true`` of the backbone.
    """

    def __init__(
        self,
        *,
        enable: bool = True,
        checkpoint_patterns: Annotated[dict[str, object] | None, NoEffect(_ALL_BLOCKS)] = None,
        dc_cfg: Annotated[dict[str, object] | None, NoEffect(f"{_ALL_BLOCKS} at every step, for any memory in use")] = None,
        share_weight_num: Annotated[dict[str, object] | int | None, NoEffect("only blocks of the backbone are recomputed")] = None,
    ) -> None:
        del checkpoint_patterns, dc_cfg, share_weight_num
        self.recomputes = enable


class MemoryEmpty(Hook):
    """Give cached GPU memory that no tensor uses back to the driver every ``freq`` steps, on every rank.

    Against fragmentation, and for a GPU that others use too; it costs time. Without a GPU there is no such cache.
    """

    on_every_rank = True

    def __init__(self, *, freq: Annotated[int, Field(ge=1)] = 1) -> None:
        self.freq = freq

    def on_step(self, report: StepReport) -> None:
        if report.step % self.freq == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()


class MemoryAnalysis(Hook):
    """Log the memory of the weights, and every ``freq`` steps the memory in use: of the GPU, or of the whole process."""

    def __init__(self, *, freq: Annotated[int, Field(ge=1)] = 100) -> None:
        self.freq = freq

    def on_start(self, outline: Outline, step: int) -> None:
        self._device = next((parameter.device for parameter in outline.model.parameters()), torch.device("cpu"))
        parameters = _megabytes(list(outline.model.parameters()))
        trained = _megabytes([parameter for parameter in outline.model.parameters() if parameter.requires_grad])
        buffers = _megabytes(list(outline.model.buffers()))
        LOGGER.info("memory: parameters %.1f MB, their gradients %.1f MB, buffers %.1f MB", parameters, trained, buffers)

    def on_step(self, report: StepReport) -> None:
        if report.step % self.freq == 0:
            LOGGER.info("memory after step %d: %s", report.step, self._in_use())

    def _in_use(self) -> str:
        if self._device.type != "cuda":
            return f"{process_peak() / _MB:,.1f} MB of the process at its peak"
        now, peak, reserved = (
            read(self._device) / _MB
            for read in (torch.cuda.memory_allocated, torch.cuda.max_memory_allocated, torch.cuda.memory_reserved)
        )
        torch.cuda.reset_peak_memory_stats(self._device)
        return f"{now:,.1f} MB in tensors, {peak:,.1f} MB at most since the last line, {reserved:,.1f} MB reserved"


def _megabytes(tensors: list[nn.Parameter] | list[torch.Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / _MB
