"""What a person watching sees."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.harness.facts import each_tells, tells
from up.engine.hooks import Outline, StepReport
from up.tracking.display import Display, show_log_on, terminal
from up.tracking.log import LOGGER


def watch(console: Console, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four updates of one second, 0.25 s of it waiting; between the second and the third an evaluation of a minute."""
    monkeypatch.setattr("up.tracking.display.time.perf_counter", lambda: clock[0])
    hook = Display(every=2, console=console)
    hook.on_start(Outline(Path("run"), nn.Identity(), total_steps=4, steps_per_epoch=2, global_batch_size=8), 0)
    for step in (1, 2, 3, 4):
        clock[0] += 1.0
        hook.on_step(StepReport(step, 0.1, {"loss": torch.tensor(float(step))}, images=8, wait_s=0.25))
        if step == 3:
            clock[0] += 60.0
            hook.on_evaluation(3, {"top1": 12.345})
    hook.on_end(4, "done")


class Gone(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")

    def isatty(self) -> bool:
        return True


def test_a_terminal_that_is_gone_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the log lines nor the bar, which puts a stream of its own in the place of the standard one."""
    monkeypatch.setattr("sys.stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    console = terminal()
    assert console.is_terminal
    show_log_on(console)
    watch(console, [0.0], monkeypatch)


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    show_log_on(Console(file=io.StringIO()))
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "up"):
        watch(Console(file=io.StringIO()), [0.0], monkeypatch)
    assert each_tells(
        caplog.messages, ("2/4", "1", "1.5", "0.1", "8", "25%", "0:02"), ("4/4", "2", "3.5", "0.1", "8", "25%", "0:00")
    )


def test_a_terminal_gets_a_bar_with_the_numbers_below(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    show_log_on(console)
    watch(console, [0.0], monkeypatch)
    shown = screen.getvalue()
    last = shown[shown.rindex("epoch 2") :]
    assert "4/4 left 0:00" in last
    assert tells(last, "3.5", "0.1", "8", "images/s", "25%")
    assert "step 4/4" not in shown
