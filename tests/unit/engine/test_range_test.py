"""The learning-rate range test: suggestions as fastai's, the end at divergence."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.harness.facts import facts
from up.data.records import Batch
from up.data.sampler import Cut, Share
from up.engine.clip import Clip
from up.engine.memory import Memory, MicroBatch
from up.engine.meter import StepMeter
from up.engine.precision import Precision
from up.engine.range_test import DIVERGED, RangeTest, range_test, steepest, valley
from up.engine.step import Runner, StepData, StepOutput
from up.errors import UserError


def fastai_valley(lrs: list[float], losses: list[float]) -> float:
    """``fastai.callback.schedule.valley``, version 2.7."""
    n = len(losses)
    max_start, max_end = 0, 0
    lds = [1] * n
    for i in range(1, n):
        for j in range(0, i):
            if (losses[i] < losses[j]) and (lds[i] < lds[j] + 1):
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    return lrs[max_start + int(sections) + int(sections / 2)]


@pytest.mark.parametrize("seed", range(10))
def test_suggestions_are_those_of_fastai(seed: int) -> None:
    draw = random.Random(seed)
    lrs = [10 ** (-7 + 8 * i / 99) for i in range(100)]
    losses = [2.3 - 2 / (1 + math.exp(-(i - 60) / 8)) + draw.gauss(0, 0.05) + max(0, i - 85) ** 2 / 20 for i in range(100)]
    assert valley(lrs, losses) == fastai_valley(lrs, losses)
    slopes = (torch.tensor(losses[1:]) - torch.tensor(losses[:-1])) / (torch.tensor(lrs[1:]).log() - torch.tensor(lrs[:-1]).log())
    assert steepest(lrs, losses) == lrs[int(slopes.argmin())]


def range_of(steps: int, high: float) -> RangeTest:
    """Least squares of one weight: plain gradient descent diverges above a learning rate of 1."""
    torch.manual_seed(0)
    net = nn.Linear(1, 1, bias=False)
    batch = Batch(image=torch.ones(2, 1), filename=["x", "x"])
    runner = Runner(
        net, loss_of=lambda net, batch: StepOutput((net(batch.image) - 3).square().mean()), stage=lambda b: b, mix=None, seed=0
    )
    session: Any = SimpleNamespace(
        runner=runner,
        memory=Memory(net, policy="stop"),
        meter=StepMeter(),
        precision=Precision(mode=None, device="cpu"),
        clip=Clip(),
        freeze=lambda step: None,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        steps=lambda from_step: (StepData([batch], 0.0, Cut([Share(1.0, 0.5)], 2)) for _ in range(steps)),
        parts=lambda data, step: [MicroBatch(batch, Share(1.0, 0.5), True)],
    )
    return range_test(session, steps=steps, low=1e-7, high=high)


def test_rates_grow_in_equal_ratios_and_the_loss_ends_it() -> None:
    result = range_of(100, 10.0)
    assert result.lrs[0] == 1e-7
    ratios = [after / before for before, after in zip(result.lrs, result.lrs[1:], strict=False)]
    assert ratios == pytest.approx([(10 / 1e-7) ** (1 / 99)] * len(ratios))
    assert result.diverged
    assert result.lrs[-1] > 1.0
    assert all(value <= DIVERGED * min(result.smoothed[: i + 1]) for i, value in enumerate(result.smoothed[:-1]))
    assert 1e-3 < result.suggestions()["valley"] <= result.suggestions()["steepest"] < 1.0
    assert range_of(100, 10.0) == result


def test_a_small_range_does_not_diverge_and_a_short_one_suggests_nothing() -> None:
    result = range_of(30, 1e-2)
    assert not result.diverged
    assert (len(result.lrs), result.lrs[-1]) == (30, pytest.approx(1e-2))
    with pytest.raises(UserError, match=facts("12", "--steps")):
        range_of(12, 1e-2).suggestions()
