"""The line that every epoch gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.harness.facts import each_tells, tells
from up.engine.hooks import Outline, StepReport
from up.intervals import Interval
from up.tracking.console import fitted
from up.tracking.epoch_lines import EpochLines
from up.tracking.log import LOGGER


def started(
    hook: EpochLines, *, total: int = 6, evaluated: Callable[[int], bool] = lambda step: False, step: int = 0
) -> EpochLines:
    hook.on_start(Outline(Path("run"), nn.Identity(), total, 3, 8, is_evaluated=evaluated), step)
    return hook


def train(hook: EpochLines, *steps: int) -> None:
    for step in steps:
        scalars = {"loss": torch.tensor(float(step)), "grad_norm": torch.tensor(9.0)}
        hook.on_step(StepReport(step, 0.5 / step, scalars, images=8, wait_s=0.0))


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged, at a time that stands still."""
    monkeypatch.setattr("up.tracking.epoch_lines.time.perf_counter", lambda: 7.0)
    monkeypatch.setattr(LOGGER, "handlers", [caplog.handler])
    monkeypatch.setattr(LOGGER, "propagate", False)
    caplog.set_level(logging.INFO, "up")


def test_an_epoch_that_is_evaluated_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    hook = started(EpochLines(), evaluated=lambda step: step == 6)
    train(hook, 1, 2, 3, 4, 5, 6)
    hook.on_best(6, "ema_top1", 97.2)
    hook.on_evaluation(6, {"ema_top1": 97.2, "ema_loss": 0.25, "top1": 90.0, "loss": 0.5})
    assert each_tells(
        caplog.messages, ("1/2", "2.0000", "0.1667", "0:00"), ("2/2", "5.0000", "0.2500", "0.5000", "ema_top1", "0.08333", "0:00")
    )


def test_a_resumed_epoch_has_the_line_of_an_unbroken_one(caplog: pytest.LogCaptureFixture) -> None:
    first = started(EpochLines())
    train(first, 1, 2)
    second = EpochLines()
    second.load_state_dict(first.state_dict())
    train(started(second, step=2), 3)
    assert each_tells(caplog.messages, ("1/2", "2.0000", "0.1667", "0:00"))


def test_an_evaluation_within_an_epoch_and_one_without_labels(caplog: pytest.LogCaptureFixture) -> None:
    hook = started(EpochLines(), total=5, evaluated=lambda step: step in (2, 3))
    train(hook, 1, 2)
    hook.on_evaluation(2, {f"head{i}_top1": 1.0 for i in range(10)})
    train(hook, 3)
    hook.on_evaluation(3, {})
    train(hook, 4, 5)
    first, second, third = caplog.messages
    assert tells(first, "2/5", "0.667", "1.5000", "head0_top1", "1.00")
    assert tells(first, "2", "more", "metrics.jsonl")
    assert tells(second, "3/5", "1", "3.0000", "0.1667", "0:00")
    assert tells(third, "5/5", "1.67", "4.5000", "0.1", "0:00")


@pytest.mark.parametrize(
    ("width", "has", "lacks"), [(170, "n = 359", "*"), (60, "(93.6–97.7)*", "ema"), (46, "val 0.2500", "train")]
)
def test_a_narrow_terminal_has_one_line_for_the_averaged_weights(
    caplog: pytest.LogCaptureFixture, width: int, has: str, lacks: str
) -> None:
    hook = started(EpochLines(unit="%"), evaluated=lambda step: step == 3)
    train(hook, 1, 2, 3)
    hook.on_best(3, "ema_top1", 96.1)
    hook.on_intervals(3, {name: Interval(93.6, 97.7, 359) for name in ("ema_top1", "top1")})
    hook.on_evaluation(3, {"ema_top1": 96.1, "ema_loss": 0.25, "top1": 90.0, "loss": 0.5})
    line = fitted(caplog.records[-1].shown, width)  # type: ignore[attr-defined]
    assert len(line) <= width
    assert has in line
    assert lacks not in line
    assert line.count("top1") == 1
