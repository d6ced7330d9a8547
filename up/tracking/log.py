"""Records of a run: train.log, metrics.jsonl, TensorBoard; and running means of the scalars of steps."""

from __future__ import annotations

import io
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor

from up.distributed.group import is_main
from up.engine.hooks import Hook, Outline, StepReport
from up.files import write_text
from up.json_text import json_text, records_in, with_nan
from up.run_files import LOG, METRICS
from up.tracking.speed import SpeedMeter, peak_memory
from up.types import Record, StateDict

LOGGER = logging.getLogger("up")
OF_THE_MACHINE = ("images_per_s", "data_wait", "peak_memory")
"""Numbers of a window of steps in ``metrics.jsonl``: speed, share of the time spent waiting for data, bytes."""


class LogFile(logging.FileHandler):
    """A log file that never ends a run or shows a traceback: a full disk is reported by the next checkpoint."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error."""


def log_to(folder: Path) -> None:
    """Write the lines of the ``up`` logger to ``train.log`` too, with time; on the main rank only."""
    LOGGER.setLevel(logging.INFO)
    for handler in [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]:
        LOGGER.removeHandler(handler)
        handler.close()
    if is_main():
        file = LogFile(folder / LOG, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(file)


_NOTHING: Mapping[str, Tensor] = {}  # the sums of every window before its first step


@contextmanager
def shown_in_notebook(progress: bool) -> Iterator[None]:
    """Print the log on stdout where stderr is not a terminal, so that notebooks do not show it in red; no log without ``progress``.

    The handlers of the log are removed afterwards.
    """
    shown = sys.stderr if progress and sys.stderr.isatty() else sys.stdout if progress else io.StringIO()
    try:
        with redirect_stderr(shown):
            yield
    finally:
        for handler in list(LOGGER.handlers):
            LOGGER.removeHandler(handler)
            handler.close()


class WindowMeter:
    """Means over the steps since the last reading: of each scalar, over the steps that had it."""

    def __init__(self) -> None:
        self._sums = _NOTHING
        self._steps = Counter[tuple[str, ...]]()  # by the names of their scalars

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add scalars of a step; adds on the device, without waiting for it."""
        self._sums = _added(self._sums, scalars)
        self._steps[tuple(scalars)] += 1

    def add_step(self, report: StepReport) -> None:
        """Add all scalars of a step; windows that began with the same step share the addition and its sums."""
        before, after = report.window
        if before is not self._sums or after is None:
            before, after = self._sums, _added(self._sums, report.scalars)
            report.window[:] = before, after
        self._sums = after
        self._steps[tuple(report.scalars)] += 1

    def read(self) -> dict[str, float]:
        """Return the means as numbers, which waits for the device, and reset."""
        steps = self._steps_of_each()
        means = {name: float(total) / steps[name] for name, total in self._sums.items()}
        self._sums, self._steps = _NOTHING, Counter()
        return means

    def state_dict(self) -> StateDict:
        """Return the state that a resumed run needs to report the same means."""
        return {"sums": dict(self._sums), "steps": self._steps_of_each()}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``, which had one number of steps for all scalars in earlier versions."""
        self._sums = dict(state["sums"])
        steps = state["steps"] if "steps" in state else dict.fromkeys(self._sums, state["updates"])
        self._steps = Counter({(name,): number for name, number in steps.items()})

    def _steps_of_each(self) -> dict[str, int]:
        return {name: sum(number for names, number in self._steps.items() if name in names) for name in self._sums}


def _added(sums: Mapping[str, Tensor], scalars: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return new sums; other meters may share the old ones."""
    if sums.keys() == scalars.keys() and len(sums) > 1:  # one operation on a GPU
        return dict(zip(scalars, torch._foreach_add([sums[name] for name in scalars], [*scalars.values()]), strict=True))
    return {**sums, **{name: sums[name] + value if name in sums else value.clone() for name, value in scalars.items()}}


class WindowHook(Hook):
    """Base of hooks that report means every ``every`` steps and at the last, across a resume too."""

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.window = WindowMeter()

    def on_start(self, outline: Outline, step: int) -> None:
        self.outline = outline

    def on_step(self, report: StepReport) -> None:
        self.window.add_step(report)
        if report.step % self.every == 0 or report.step == self.outline.total_steps:
            self.on_means(report, self.window.read())

    def on_means(self, report: StepReport, means: Mapping[str, float]) -> None:
        """Called with the means over the steps since the last call."""

    def state_dict(self) -> StateDict:
        """Return the sums since the last report."""
        return self.window.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self.window.load_state_dict(state)


class MetricsFile(WindowHook):
    """Writes ``metrics.jsonl``: one JSON object a line, means over each display interval and every evaluation.

    A number that is not finite is null there.
    Lines of training end with the numbers of the machine, ``OF_THE_MACHINE``, which no two runs share. Each of ``readers`` is
    called with the same: phase, step and values.
    """

    def __init__(self, *, every: int, readers: Sequence[Callable[[str, int, Mapping[str, float]], object]] = ()) -> None:
        super().__init__(every=every)
        self.readers = readers

    def on_start(self, outline: Outline, step: int) -> None:
        super().on_start(outline, step)
        self._path = outline.folder / METRICS
        cut_after(self._path, step)
        self._speed = SpeedMeter()

    def on_step(self, report: StepReport) -> None:
        self._speed.add(report)
        super().on_step(report)

    def on_means(self, report: StepReport, means: Mapping[str, float]) -> None:
        images_per_s, data_wait = self._speed.read()  # after the means, which waited for the device
        of_the_machine = (round(images_per_s, 2), round(data_wait, 4), peak_memory(self.outline.model))
        self._append(report.step, {"lr": report.lr, **means, **dict(zip(OF_THE_MACHINE, of_the_machine, strict=True))}, "train")

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(step, metrics, "eval")
        self._speed.leave_out()

    def on_save(self, step: int, path: Path) -> None:
        self._speed.leave_out()

    def on_out_of_memory(self, step: int, images: int) -> None:
        self._append(step, {"images_at_once": images}, "memory")

    def _append(self, step: int, values: Mapping[str, float], phase: str) -> None:
        record = {"phase": phase, "step": step, "epoch": round(step / self.outline.steps_per_epoch, 4), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")
        for read in self.readers:
            read(phase, step, values)


def read_metrics(folder: Path) -> list[Record]:
    """Read ``metrics.jsonl`` of a run folder, without a last line that was cut off; empty where there is none.

    Numbers that are not finite are NaN.
    """
    path = folder / METRICS
    return [with_nan(record) for _, record in records_in(path)] if path.exists() else []


def cut_after(path: Path, step: int) -> None:
    """Drop the lines after ``step``, which a killed run reported but did not save: those steps are repeated."""
    if path.exists():
        write_text(path, "".join(line + "\n" for line, record in records_in(path) if record["step"] <= step))
