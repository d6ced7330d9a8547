"""Learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3): losses while the learning rate grows from step to step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from up.engine.loop import accumulate
from up.engine.session import TrainingSession
from up.errors import NumericalError, UserError
from up.optim import set_lr

SMOOTHING = 0.98  # of the exponential moving average of the losses, as in fastai
DIVERGED = 4.0  # times the smallest smoothed loss
FEWEST = 10  # losses for a suggestion


@dataclass(frozen=True)
class RangeTest:
    """Learning rates and the losses of their steps, as measured and smoothed."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool

    def suggestions(self) -> dict[str, float]:
        """Return the learning rates where the smoothed loss falls fastest (``steepest``) and in its longest descent (``valley``).

        The first tenth of the curve, where the average settles, and its last five points, where it may diverge, do not count (as in
        fastai). Raises ``UserError`` if the curve is too short.
        """
        first = len(self.lrs) // 10
        lrs, losses = self.lrs[first:-5], self.smoothed[first:-5]
        if len(lrs) < FEWEST:
            what = f"the loss diverged after {len(self.lrs)} steps, too early for a suggestion"
            raise UserError(what, fix="Lower --min, or take more --steps.")
        return {"valley": valley(lrs, losses), "steepest": steepest(lrs, losses)}


def steepest(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Return the learning rate at which the loss falls fastest per unit of log(lr)."""
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    return lrs[int(slopes.argmin())]


def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Return the learning rate two thirds into the longest decreasing subsequence of the losses, as fastai's ``valley``."""
    longest = [1] * len(losses)
    start = end = 0
    for i in range(1, len(losses)):
        longest[i] = max([longest[i], *(longest[j] + 1 for j in range(i) if losses[i] < losses[j])])
        if longest[i] > longest[end]:
            end, start = i, i - longest[i]
    third = (end - start) / 3
    return lrs[max(0, start + int(third) + int(third / 2))]


def range_test(session: TrainingSession, *, steps: int, low: float, high: float, first: int = 0) -> RangeTest:
    """Train ``session`` for at most ``steps`` steps with learning rates from ``low`` to ``high`` in equal ratios.

    What trains is what the run trains from step ``first`` on.
    Stops where the smoothed loss is ``DIVERGED`` times its minimum, or not finite. The session is used up; nothing is written.
    """
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for step, data in enumerate(session.steps(from_step=0)):
        if data.failure is not None:
            raise data.failure
        session.freeze(first + step)
        lr = low * (high / low) ** (step / max(1, steps - 1))
        set_lr(session.optimizer, lr)
        accumulate(session, data, step)
        scale = session.meter.scale()
        loss = float(session.meter.take()["loss"])
        if not math.isfinite(loss):
            return RangeTest(lrs, losses, smoothed, diverged=True)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        lrs.append(lr)
        losses.append(loss)
        smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if smoothed[-1] > DIVERGED * min(smoothed):
            return RangeTest(lrs, losses, smoothed, diverged=True)
        try:
            session.precision.step(session.optimizer, session.clip, scale=scale)
            session.precision.settle()
        except NumericalError:
            return RangeTest(lrs, losses, smoothed, diverged=True)
    return RangeTest(lrs, losses, smoothed, diverged=False)
