"""Progress of a run: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from up.distributed.group import is_main
from up.engine.hooks import Outline, StepReport
from up.text import duration
from up.tracking.console import JSON, QUIET, LinePart, fitted, has_bar, output, terminal, wrapped, write_json_line
from up.tracking.log import LOGGER, WindowHook
from up.tracking.speed import SpeedMeter
from up.types import Kwargs


class TrainingBar(Progress):
    """A progress bar and a line of numbers below it: two lines, never more, as wide as the terminal is at the moment."""

    def __init__(self, console: Console, *, total: int, completed: int) -> None:
        self._screen = console
        self.numbers: Sequence[LinePart] = ()
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        super().__init__(*columns, console=console, refresh_per_second=4, transient=True, expand=True)
        self._training = self.add_task("training", total=total, completed=completed, left="")

    def start(self) -> None:
        """Draw the bar. The cursor stays visible: whatever kills the process leaves a terminal that can be used."""
        super().start()
        self.console.show_cursor(True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the numbers below it."""
        for renderable in super().get_renderables():
            yield Constrain(renderable, self._screen.width - 1)
        numbers = fitted(self.numbers, self._screen.width - 1) or " "  # of an empty text rich would not count the line
        yield Text(numbers, no_wrap=True, overflow="crop")

    def advance_to(self, step: int) -> None:
        """Move the bar to ``step``."""
        self.update(self._training, completed=step)

    def show(self, epoch: int, numbers: Sequence[LinePart], left: str) -> None:
        """Show the numbers of the last steps."""
        self.numbers = numbers
        self.update(self._training, description=f"epoch {epoch}", left=f"left {left}")


class OutputOfWorkers(threading.Thread):
    """Prints above the bar what processes forked from this one write, such as the warnings of loader workers."""

    def __init__(self, console: Console) -> None:
        super().__init__(daemon=True)
        self.console = console
        self._read, self._write = os.pipe()
        self._is_open = True
        os.register_at_fork(after_in_child=self._redirect)
        self.start()

    def _redirect(self) -> None:
        if self._is_open:
            os.dup2(self._write, 2)
            sys.stderr = sys.__stderr__  # the bar's own stream belongs to the parent

    def run(self) -> None:
        """Read lines until the bar and all workers have ended."""
        with suppress(OSError), os.fdopen(self._read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                print_on(self.console, line.rstrip("\n"))

    def close(self) -> None:
        """Redirect no process from here on."""
        if self._is_open:
            self._is_open = False
            os.close(self._write)


@cache
def console_of_run() -> Console:
    """Return the console that progress bar and log lines share."""
    return terminal()


def print_on(console: Console, text: str, *, whole: bool = False) -> None:
    """Print lines above the bar, wrapped between words; ``whole`` lines, such as commands to copy, by the terminal alone."""
    console.print(Text(text if whole else wrapped(text, console.width)), soft_wrap=True)


class ThroughConsole(logging.Handler):
    """Prints log lines above the bar: one line an epoch, with as many numbers as fit."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record without markup; a forked process has no console, its lines go to the one that has."""
        text, parts = self.format(record), getattr(record, "shown", ())
        if os.getpid() != self._process:
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())
        elif parts:
            print_on(self.console, fitted(parts, self.console.width), whole=True)
        else:
            print_on(self.console, text, whole=getattr(record, "whole", False))


class JsonLines(logging.Handler):
    """Writes log records as JSON objects on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record with the fields of its event."""
        event, fields = getattr(record, "event", "log"), getattr(record, "fields", {})
        write_json_line(record.levelname.lower(), event, self.format(record), **fields)


class Display(WindowHook):
    """Shows loss, learning rate, images per second, share of time spent waiting for data, and time left, every ``every`` steps."""

    def __init__(self, *, every: int, console: Console | None = None) -> None:
        super().__init__(every=every)
        self.console = console or terminal()
        self._bar: TrainingBar | None = None
        self._workers: OutputOfWorkers | None = None

    def on_start(self, outline: Outline, step: int) -> None:
        super().on_start(outline, step)
        self._first_step = step
        self._begun = time.perf_counter()
        self._speed = SpeedMeter()
        if has_bar(self.console):
            self._bar = TrainingBar(self.console, total=outline.total_steps, completed=step)
            self._bar.start()
            self._workers = OutputOfWorkers(self.console)

    def on_step(self, report: StepReport) -> None:
        self._speed.add(report)
        if self._bar:
            self._bar.advance_to(report.step)
        super().on_step(report)

    def on_means(self, report: StepReport, means: Mapping[str, float]) -> None:
        now, total = time.perf_counter(), self.outline.total_steps
        images_per_s, data_wait = self._speed.read()  # after the means, which waited for the device
        left_s = (total - report.step) * (now - self._begun) / max(1, report.step - self._first_step)
        shown = [LinePart(text := f"{name} {value:.4g}", text, 0 if name == "loss" else 4) for name, value in means.items()]
        shown.append(LinePart(text := f"lr {report.lr:.4g}", text, 1))
        shown.append(LinePart(text := f"{images_per_s:,.0f} images/s", text, 2))
        shown.append(LinePart(text := f"data wait {100 * data_wait:.0f}%", text, 3))
        epoch = (report.step - 1) // self.outline.steps_per_epoch + 1
        if self._bar:
            self._bar.show(epoch, shown, duration(left_s))
        numbers = "  ".join(part.text for part in shown)
        line = f"step {report.step}/{total}  epoch {epoch}  {numbers}  left {duration(left_s)}"
        fields = {"step": report.step, "epoch": epoch, **means, "lr": report.lr}
        fields |= {"images_per_s": images_per_s, "data_wait": data_wait, "left_s": left_s}
        _record(line, to_console=self._bar is None, event="step", fields=fields)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._speed.leave_out()

    def on_save(self, step: int, path: Path) -> None:
        fields = {"step": step, "path": str(path)}
        _record(f"saved {path} (step {step})", to_console=output() == JSON, event="save", fields=fields)
        self._speed.leave_out()

    def on_end(self, step: int, reason: str) -> None:
        if self._workers:
            self._workers.close()
        if self._bar:
            self._bar.stop()
            self._bar = None


def show_log_on(console: Console) -> None:
    """Print the lines of the ``up`` logger: through the console of the bar, plain where there is none, as JSON or results alone."""
    LOGGER.setLevel(logging.INFO if is_main() else logging.ERROR)  # only one rank logs what all ranks know
    LOGGER.propagate = False
    for handler in [handler for handler in LOGGER.handlers if not isinstance(handler, logging.FileHandler)]:
        LOGGER.removeHandler(handler)
    shown: logging.Handler = JsonLines() if output() == JSON else logging.StreamHandler()
    if has_bar(console):
        shown = ThroughConsole(console)
    shown.addFilter(lambda record: getattr(record, "to_console", True))
    if output() == QUIET:
        shown.addFilter(lambda record: record.levelno >= logging.ERROR or getattr(record, "event", "") == "result")
    LOGGER.addHandler(shown)


def _record(line: str, *, to_console: bool = True, event: str = "log", fields: Kwargs | None = None) -> None:
    LOGGER.info(line, extra={"to_console": to_console, "event": event, "fields": fields or {}})
