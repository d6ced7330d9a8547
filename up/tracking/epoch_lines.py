"""Log lines of epochs: training loss, validation loss and metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping

from up.engine.hooks import Hook, Outline, StepReport
from up.text import duration
from up.tracking.log import LOGGER, WindowMeter
from up.types import StateDict

_SHOWN = 8  # metrics in a line; metrics.jsonl has all of them


class EpochLines(Hook):
    """Log a line at the end of every epoch and after every evaluation, whatever ``trainer.log_interval`` is.

    Training loss (mean over the steps since the line before), validation loss, metrics, learning rate, time since the line
    before. The metric that makes a checkpoint the best so far is marked.
    """

    def __init__(self) -> None:
        self._losses = WindowMeter()
        self._lr: float | None = None
        self._best: str | None = None  # the main metric, if this evaluation is the best so far

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline = outline
        self._since = time.perf_counter()

    def on_step(self, report: StepReport) -> None:
        self._losses.add({name: report.scalars[name] for name in ("loss",) if name in report.scalars})
        self._lr = report.lr
        is_end = report.step % self._outline.steps_per_epoch == 0 or report.step == self._outline.total_steps
        if is_end and not self._outline.is_evaluated(report.step):
            self._log(report.step, [])

    def on_best(self, step: int, metric: str, value: float) -> None:
        self._best = metric

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        losses = [name for name in metrics if name.endswith("loss")]
        names = [*losses, *(name for name in metrics if name not in losses)]
        shown = [self._shown(name, metrics[name]) for name in names[:_SHOWN]]
        if len(names) > _SHOWN:
            shown.append(f"and {len(names) - _SHOWN} more in metrics.jsonl")
        self._log(step, shown or ["no labels, no metrics"])
        self._best = None

    def _shown(self, name: str, value: float) -> str:
        if name.endswith("loss"):
            return f"{name.removesuffix('loss').replace('_', ' ')}val loss {value:.4f}"
        return f"{name} {value:.2f}{' (best)' if name == self._best else ''}"

    def _log(self, step: int, measured: list[str]) -> None:
        trained = [f"train loss {value:.4f}" for value in self._losses.read().values()]
        rate = [] if self._lr is None else [f"lr {self._lr:.4g}"]
        now = time.perf_counter()
        LOGGER.info("  ".join([self._outline.epoch_at(step), *trained, *measured, *rate, duration(now - self._since)]))
        self._since = now

    def state_dict(self) -> StateDict:
        """Return the losses since the last line."""
        return {"losses": self._losses.state_dict(), "lr": self._lr}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._losses.load_state_dict(state["losses"])
        self._lr = state["lr"]
