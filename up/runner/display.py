"""What a person watching sees: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from up.runner.hooks import Hook, Outline, UpdateReport
from up.runner.log import LOGGER
from up.runner.meter import WindowMeter
from up.text import duration


class Display(Hook):
    """Loss, learning rate, images per second, share of the time spent waiting for data, time left; every ``every`` updates."""

    def __init__(self, *, every: int, console: Console | None = None) -> None:
        self.every = every
        self.console = console or Console(stderr=True)
        self._window = WindowMeter()
        self._bar: Progress | None = None

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline = outline
        self._first_step = self._last_step = step
        self._images, self._wait_s = 0, 0.0
        self._begun = self._since = time.perf_counter()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("training", total=outline.total_steps, completed=step, shown="")
            self._bar.start()

    def on_step(self, report: UpdateReport) -> None:
        self._window.add(report.scalars)
        self._images += report.images
        self._wait_s += report.wait_s
        if self._bar:
            self._bar.update(self._task, completed=report.step)
        if report.step % self.every == 0 or report.step == self._outline.total_steps:
            self._show(report)

    def _show(self, report: UpdateReport) -> None:
        means = self._window.read()  # waits for the device, so that the clock below is honest
        now = time.perf_counter()
        spent = max(now - self._since, 1e-9)
        left = (self._outline.total_steps - report.step) * (now - self._begun) / max(1, report.step - self._first_step)
        shown = "  ".join(
            [
                *(f"{name} {value:.4g}" for name, value in means.items()),
                f"lr {report.lr:.4g}",
                f"{self._images / spent:,.0f} images/s",
                f"data wait {100 * self._wait_s / spent:.0f}%",
                f"left {duration(left)}",
            ]
        )
        epoch = (report.step - 1) // self._outline.updates_per_epoch + 1
        if self._bar:
            self._bar.update(self._task, description=f"epoch {epoch}", shown=shown)
        _record(f"step {report.step}/{self._outline.total_steps}  epoch {epoch}  {shown}", to_console=self._bar is None)
        self._since, self._images, self._wait_s, self._last_step = now, 0, 0.0, report.step

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.2f}" for name, value in metrics.items()) or "no labels, nothing to measure"
        _record(f"evaluation at step {step} (epoch {step / self._outline.updates_per_epoch:g}):  {shown}")
        self._since = time.perf_counter()  # evaluation is no training time

    def on_save(self, step: int, path: Path) -> None:
        _record(f"saved {path} (step {step})")
        self._since = time.perf_counter()

    def on_end(self, step: int, reason: str) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def state_dict(self) -> dict[str, Any]:
        """The updates since the last line."""
        return self._window.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self._window.load_state_dict(state)


def show_log_on(console: Console) -> None:
    """Print the lines of the ``up`` logger: with a progress bar through the same console, plain otherwise."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for handler in [handler for handler in LOGGER.handlers if not isinstance(handler, logging.FileHandler)]:
        LOGGER.removeHandler(handler)
    if console.is_terminal:
        LOGGER.addHandler(RichHandler(console=console, show_path=False, show_level=False, markup=False, highlighter=None))
        return
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(message)s"))
    plain.addFilter(lambda record: getattr(record, "to_console", True))
    LOGGER.addHandler(plain)


def _record(line: str, *, to_console: bool = True) -> None:
    LOGGER.info(line, extra={"to_console": to_console})
