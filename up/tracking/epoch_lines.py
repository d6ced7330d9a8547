"""Log lines of epochs: training loss, validation loss and metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from up.engine.hooks import Hook, Outline, StepReport
from up.intervals import Interval
from up.text import duration
from up.tracking.console import LinePart
from up.tracking.log import LOGGER, WindowMeter
from up.tracking.speed import SpeedMeter
from up.types import Record, StateDict

_SHOWN = 8  # metrics in a line; metrics.jsonl has all of them


class EpochLines(Hook):
    """Log a line at the end of every epoch and after every evaluation, whatever ``trainer.log_interval`` is.

    Training loss (mean over the steps since the line before), validation loss, metrics with their intervals, learning rate, speed,
    time since the line before, time left. The metric that makes a checkpoint the best so far is marked. ``unit`` follows each
    metric but losses. A terminal shows as much of the line as it is wide.
    """

    def __init__(self, *, unit: str = "") -> None:
        self.unit = f" {unit}" if unit else ""
        self._losses = WindowMeter()
        self._lr: float | None = None
        self._best: str | None = None  # the main metric, if this evaluation is the best so far
        self._intervals: Mapping[str, Interval] = {}

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline = outline
        self._since = self._begun = time.perf_counter()
        self._first_step = step
        self._speed = SpeedMeter()

    def on_step(self, report: StepReport) -> None:
        self._speed.add(report)
        self._losses.add({name: report.scalars[name] for name in ("loss",) if name in report.scalars})
        self._lr = report.lr
        is_end = report.step % self._outline.steps_per_epoch == 0 or report.step == self._outline.total_steps
        if is_end and not self._outline.is_evaluated(report.step):
            self._log(report.step, {})

    def on_best(self, step: int, metric: str, value: float) -> None:
        self._best = metric

    def on_intervals(self, step: int, intervals: Mapping[str, Interval]) -> None:
        self._intervals = intervals

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._speed.leave_out()
        losses = [name for name in metrics if name.endswith("loss")]
        names = [*losses, *(name for name in metrics if name not in losses)]
        others = [name for name in names if name not in losses]
        main = self._best or next(iter(others), "")
        measured = [self._shown(name, metrics[name], 0 if name in (main, *losses[:1]) else 5) for name in names[:_SHOWN]]
        if len(names) > _SHOWN:
            measured.append(LinePart(f"and {len(names) - _SHOWN} more in metrics.jsonl", "", 6))
        self._log(step, metrics, measured or [LinePart("no labels, no metrics", "no metrics")])
        self._best, self._intervals = None, {}

    def on_save(self, step: int, path: Path) -> None:
        self._speed.leave_out()

    def _shown(self, name: str, value: float, leave: int) -> LinePart:
        brief = name.removeprefix("ema_")  # a line of short parts has the metrics of one set of weights
        if name.endswith("loss"):
            kind = name.removesuffix("loss").replace("_", " ")
            return LinePart(f"{kind}val loss {value:.4f}", "" if leave else f"val {value:.4f}", leave)
        best, star = (" (best)", "*") if name == self._best else ("", "")
        text, interval = f"{name} {value:.2f}", self._intervals.get(name)
        if interval is None:
            return LinePart(f"{text}{self.unit}{best}", "" if leave else f"{brief} {value:.2f}{star}", leave)
        limits = f"({interval.low:.1f}–{interval.high:.1f})"
        return LinePart(f"{text}{self.unit} {interval}{best}", "" if leave else f"{brief} {value:.2f} {limits}{star}", leave)

    def _log(self, step: int, metrics: Mapping[str, float], measured: Sequence[LinePart] = ()) -> None:
        losses = self._losses.read()
        images_per_s, data_wait = self._speed.read()  # after the means, which waited for the device
        now = time.perf_counter()
        spent, done = now - self._since, max(1, step - self._first_step)
        left_s = (self._outline.total_steps - step) * (now - self._begun) / done
        epoch = self._outline.epoch_at(step)
        line = [LinePart(epoch, epoch.removeprefix("epoch "))]
        line += [LinePart(f"train loss {value:.4f}", f"train {value:.4f}", 1) for value in losses.values()]
        line += measured
        line += [] if self._lr is None else [LinePart(text := f"lr {self._lr:.4g}", text, 3)]
        line.append(LinePart(text := f"{images_per_s:,.0f} images/s", text, 4))
        line.append(LinePart(text := f"data wait {100 * data_wait:.0f}%", text, 4))
        line.append(LinePart(text := duration(spent), text, 4))
        line.append(LinePart(text := f"left {duration(left_s)}", text, 2))
        fields: Record = {"step": step, "epoch": step / self._outline.steps_per_epoch, "lr": self._lr, **metrics}
        fields |= {f"train_{name}": value for name, value in losses.items()}
        fields |= {"images_per_s": images_per_s, "data_wait": data_wait, "seconds": spent, "left_s": left_s}
        fields |= {"intervals": {name: list(interval) for name, interval in self._intervals.items()}} if self._intervals else {}
        text = "  ".join(part.text for part in line)
        LOGGER.info("%s", text, extra={"shown": line, "event": "epoch", "fields": fields})
        self._since = now

    def state_dict(self) -> StateDict:
        """Return the losses since the last line."""
        return {"losses": self._losses.state_dict(), "lr": self._lr}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._losses.load_state_dict(state["losses"])
        self._lr = state["lr"]
