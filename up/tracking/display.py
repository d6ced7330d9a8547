"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from up.distributed.group import is_main
from up.engine.hooks import Outline, UpdateReport
from up.text import duration
from up.tracking.log import LOGGER
from up.tracking.meter import WindowHook


class UntilItCloses:
    """``sys.stderr``, which falls silent when its terminal closes: a run ends in order then, and ``train.log`` has every line."""

    @property
    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a bar puts itself in its place

    def write(self, text: str) -> int:
        """Write, if somebody may read it."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """The same."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class TrainingBar(Progress):
    """A bar, and below it a line of numbers that may be as long as the terminal is wide."""

    def __init__(self, console: Console, *, total: int, completed: int) -> None:
        self.numbers = Text()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        super().__init__(*columns, console=console, refresh_per_second=4)
        self._training = self.add_task("training", total=total, completed=completed, left="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the numbers below it."""
        yield from super().get_renderables()
        yield self.numbers

    def advance_to(self, step: int) -> None:
        """``step`` updates are done."""
        self.update(self._training, completed=step)

    def tell(self, epoch: int, numbers: str, left: str) -> None:
        """The numbers of the last updates."""
        self.numbers = Text(numbers)
        self.update(self._training, description=f"epoch {epoch}", left=f"left {left}")


def terminal() -> Console:
    """Console on ``sys.stderr`` that survives a terminal that closes."""
    return Console(file=cast(TextIO, UntilItCloses()))


@cache
def console_of_run() -> Console:
    """The terminal that progress bar and log lines share."""
    return terminal()


class ThroughConsole(logging.Handler):
    """Prints log lines above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, as it is."""
        self.console.print(Text(self.format(record)), soft_wrap=True)


class Display(WindowHook):
    """Loss, learning rate, images per second, share of the time spent waiting for data, time left; every ``every`` updates."""

    def __init__(self, *, every: int, console: Console | None = None) -> None:
        self.every = every
        self.console = console or terminal()
        super().__init__()
        self._bar: TrainingBar | None = None

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline = outline
        self._first_step = step
        self._images, self._wait_s = 0, 0.0
        self._begun = self._since = self._seen = time.perf_counter()
        if self.console.is_terminal:
            self._bar = TrainingBar(self.console, total=outline.total_steps, completed=step)
            self._bar.start()

    def on_step(self, report: UpdateReport) -> None:
        self._window.add(report.scalars)
        self._images += report.images
        self._wait_s += report.wait_s
        if self._bar:
            self._bar.advance_to(report.step)
        if report.step % self.every == 0 or report.step == self._outline.total_steps:
            self._show(report)
        self._seen = time.perf_counter()

    def _show(self, report: UpdateReport) -> None:
        means = self._window.read()  # waits for the device, so that the clock below is honest
        now = time.perf_counter()
        spent = max(now - self._since, 1e-9)
        left = duration((self._outline.total_steps - report.step) * (now - self._begun) / max(1, report.step - self._first_step))
        numbers = "  ".join(
            [
                *(f"{name} {value:.4g}" for name, value in means.items()),
                f"lr {report.lr:.4g}",
                f"{self._images / spent:,.0f} images/s",
                f"data wait {100 * self._wait_s / spent:.0f}%",
            ]
        )
        epoch = (report.step - 1) // self._outline.updates_per_epoch + 1
        if self._bar:
            self._bar.tell(epoch, numbers, left)
        line = f"step {report.step}/{self._outline.total_steps}  epoch {epoch}  {numbers}  left {left}"
        _record(line, to_console=self._bar is None)
        self._since, self._images, self._wait_s = now, 0, 0.0

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._leave_out_time_since_the_update()

    def on_save(self, step: int, path: Path) -> None:
        _record(f"saved {path} (step {step})", to_console=False)
        self._leave_out_time_since_the_update()

    def _leave_out_time_since_the_update(self) -> None:
        """Evaluating and saving are no training time: images per second must not sink with them."""
        now = time.perf_counter()
        self._since += now - self._seen
        self._seen = now

    def on_end(self, step: int, reason: str) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def show_log_on(console: Console) -> None:
    """Print the lines of the ``up`` logger: with a progress bar through the same console, plain otherwise."""
    LOGGER.setLevel(logging.INFO if is_main() else logging.ERROR)  # what all ranks know, one says
    LOGGER.propagate = False
    for handler in [handler for handler in LOGGER.handlers if not isinstance(handler, logging.FileHandler)]:
        LOGGER.removeHandler(handler)
    shown = ThroughConsole(console) if console.is_terminal else logging.StreamHandler()
    shown.addFilter(lambda record: getattr(record, "to_console", True))
    LOGGER.addHandler(shown)


def _record(line: str, *, to_console: bool = True) -> None:
    LOGGER.info(line, extra={"to_console": to_console})
