"""Progress of a run: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from up.distributed.group import is_main
from up.engine.hooks import Outline, StepReport
from up.text import duration
from up.tracking.log import LOGGER, WindowHook
from up.tracking.speed import SpeedMeter


class UntilItCloses:
    """``sys.stderr`` that ignores a closed terminal: the run then ends in order, and ``train.log`` has every line."""

    @property
    def _stream(self) -> TextIO:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a bar replaces sys.stderr by itself

    def write(self, text: str) -> int:
        """Write if the terminal is open."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if the terminal is open."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class TrainingBar(Progress):
    """A progress bar with a line of numbers below it, as wide as the terminal."""

    def __init__(self, console: Console, *, total: int, completed: int) -> None:
        self.numbers = Text()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        super().__init__(*columns, console=console, refresh_per_second=4)
        self._training = self.add_task("training", total=total, completed=completed, left="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the numbers below it."""
        yield from super().get_renderables()
        yield self.numbers

    def advance_to(self, step: int) -> None:
        """Move the bar to ``step``."""
        self.update(self._training, completed=step)

    def show(self, epoch: int, numbers: str, left: str) -> None:
        """Show the numbers of the last steps."""
        self.numbers = Text(numbers)
        self.update(self._training, description=f"epoch {epoch}", left=f"left {left}")


def terminal() -> Console:
    """Return a console on ``sys.stderr`` that survives a terminal that closes."""
    return Console(file=cast(TextIO, UntilItCloses()))


@cache
def console_of_run() -> Console:
    """Return the console that progress bar and log lines share."""
    return terminal()


class ThroughConsole(logging.Handler):
    """Prints log lines above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record without markup."""
        self.console.print(Text(self.format(record)), soft_wrap=True)


class Display(WindowHook):
    """Shows loss, learning rate, images per second, share of time spent waiting for data, and time left, every ``every`` steps."""

    def __init__(self, *, every: int, console: Console | None = None) -> None:
        super().__init__(every=every)
        self.console = console or terminal()
        self._bar: TrainingBar | None = None

    def on_start(self, outline: Outline, step: int) -> None:
        super().on_start(outline, step)
        self._first_step = step
        self._begun = time.perf_counter()
        self._speed = SpeedMeter()
        if self.console.is_terminal:
            self._bar = TrainingBar(self.console, total=outline.total_steps, completed=step)
            self._bar.start()

    def on_step(self, report: StepReport) -> None:
        self._speed.add(report)
        if self._bar:
            self._bar.advance_to(report.step)
        super().on_step(report)

    def on_means(self, report: StepReport, means: Mapping[str, float]) -> None:
        now, total = time.perf_counter(), self.outline.total_steps
        images_per_s, data_wait = self._speed.read()  # after the means, which waited for the device
        left = duration((total - report.step) * (now - self._begun) / max(1, report.step - self._first_step))
        shown = [*(f"{name} {value:.4g}" for name, value in means.items()), f"lr {report.lr:.4g}"]
        shown += [f"{images_per_s:,.0f} images/s", f"data wait {100 * data_wait:.0f}%"]
        numbers = "  ".join(shown)
        epoch = (report.step - 1) // self.outline.steps_per_epoch + 1
        if self._bar:
            self._bar.show(epoch, numbers, left)
        _record(f"step {report.step}/{total}  epoch {epoch}  {numbers}  left {left}", to_console=self._bar is None)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._speed.leave_out()

    def on_save(self, step: int, path: Path) -> None:
        _record(f"saved {path} (step {step})", to_console=False)
        self._speed.leave_out()

    def on_end(self, step: int, reason: str) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def show_log_on(console: Console) -> None:
    """Print the lines of the ``up`` logger: with a progress bar through the same console, plain otherwise."""
    LOGGER.setLevel(logging.INFO if is_main() else logging.ERROR)  # only one rank logs what all ranks know
    LOGGER.propagate = False
    for handler in [handler for handler in LOGGER.handlers if not isinstance(handler, logging.FileHandler)]:
        LOGGER.removeHandler(handler)
    shown = ThroughConsole(console) if console.is_terminal else logging.StreamHandler()
    shown.addFilter(lambda record: getattr(record, "to_console", True))
    LOGGER.addHandler(shown)


def _record(line: str, *, to_console: bool = True) -> None:
    LOGGER.info(line, extra={"to_console": to_console})
