"""The learning rate as a pure function of the step: warm-up towards the target, then a curve.

Steps are counted from 0. ``updates_per_epoch`` converts epochs in ``kwargs`` to steps. A curve takes (step, run) and depends
on the warm-up only by its length; resuming needs the step alone (and, for ``ReduceLROnPlateau``, the metrics so far).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from up.config.argument import AtLeast0, AtLeast1, Fraction, NotNegative
from up.config.checked import checked
from up.config.parts import check_kwargs
from up.errors import UserError
from up.optim.curves import Curve, Run
from up.registry import Registry
from up.types import Kwargs, StateDict

SCHEDULES = Registry(
    "lr_scheduler",
    {
        "MultiStepLR": "up.optim.curves:MultiStepLR",
        "StepLR": "up.optim.curves:StepLR",
        "polylr": "up.optim.curves:PolyLR",
        "OneCycleLR": "up.optim.curves:OneCycleLR",
        "ReduceLROnPlateau": "up.optim.curves:ReduceLROnPlateau",
        "CosineAnnealingLR": "up.optim.curves:CosineAnnealingLR",
        "CosineLREpochScheduler": "up.optim.curves:CosineLREpochScheduler",
        "EpochBasedCosineAnnealingLR": "up.optim.curves:EpochBasedCosineAnnealingLR",
        "constant": "up.optim.curves:Constant",
        "linear": "up.optim.curves:Linear",
        "slanted_triangle": "up.optim.curves:SlantedTriangle",
    },
)

_ROUNDING = 1e-6  # steps: 1.15 epochs of 100 steps are 114.99999999999999 as floats

WarmupType = Literal["exp", "linear", "cosine"]
RegisterType = Literal["base", "no_scale_lr"]


@dataclass(frozen=True)
class Warmup:
    """The first ``steps`` steps, from ``start`` to the target, which the last of them reaches."""

    type: WarmupType
    start: float
    steps: int

    def __call__(self, step: int, target: float) -> float:
        """Compute the learning rate of a ``step`` below ``steps``."""
        progress = step / max(1, self.steps - 1)
        if self.type == "exp":
            return self.start * (target / self.start) ** progress if self.start > 0 else target
        if self.type == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (target - self.start) * progress


class Schedule:
    """Learning rate by step, of the group with ``lr_scale`` 1."""

    _first = 0  # step at which the warm-up begins

    def __init__(self, curve: Curve, *, warmup: Warmup, run: Run) -> None:
        self._curve = curve
        self._warmup = warmup
        self._run = run

    @property
    def target(self) -> float:
        """The learning rate that the warm-up leads to."""
        return self._run.base

    def __call__(self, step: int) -> float:
        """Compute the learning rate of ``step``."""
        if step < self._warmup.steps:
            return self._warmup(step, self._run.base)
        return self._curve(step, self._run)

    def extremes(self, total: int) -> tuple[float, tuple[int, float], float]:
        """Return the first learning rate of a run of ``total`` steps, the highest with its step, and the last.

        Long runs are sampled at a thousand steps, and at the last step of the warm-up.
        """
        sampled = {*range(0, total, max(1, total // 1000)), min(self._first + self._warmup.steps, total) - 1, total - 1}
        lrs = {step: self(step) for step in sorted(step for step in sampled if step >= 0)}
        highest = max(lrs, key=lrs.__getitem__)
        return lrs[0], (highest, lrs[highest]), lrs[total - 1]

    def observe(self, step: int, metric: float) -> None:
        """Pass on the ``metric`` of the evaluation after ``step`` steps; only ``ReduceLROnPlateau`` uses it."""
        self._curve.observe(step, metric)

    def state_dict(self) -> StateDict:
        """Return the state beside the step; empty except for ``ReduceLROnPlateau``."""
        return self._curve.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Restore ``state_dict()``."""
        self._curve.load_state_dict(state)


class Staged(Schedule):
    """A schedule with constant learning rates before and after it: a linear probe's first steps, and those of SWA.

    ``main`` begins after ``first`` steps at ``first_lr``; from step ``last_from`` on the learning rate is ``last_lr``.
    """

    def __init__(
        self, main: Schedule, *, first: int = 0, first_lr: float = 0.0, last_from: int | None = None, last_lr: float = 0.0
    ) -> None:
        super().__init__(main._curve, warmup=main._warmup, run=main._run)
        self._first, self._first_lr, self._last_from, self._last_lr = first, first_lr, last_from, last_lr

    def __call__(self, step: int) -> float:
        """Compute the learning rate of ``step``."""
        if step < self._first:
            return self._first_lr
        if self._last_from is not None and step >= self._last_from:
            return self._last_lr
        return super().__call__(step - self._first)

    def observe(self, step: int, metric: float) -> None:
        """Pass on the ``metric`` of the evaluation after ``step`` steps, except those before the main schedule."""
        if step >= self._first:
            super().observe(step - self._first, metric)


@checked
def build_schedule(
    type: str,
    *,
    base_lr: NotNegative,
    updates_per_epoch: AtLeast1,
    total_updates: int | None = None,
    global_batch_size: AtLeast1 = 1,
    warmup_iter: AtLeast0 = 0,
    warmup_epochs: NotNegative = 0,
    warmup_share: Fraction = 0,
    warmup_type: WarmupType = "exp",
    warmup_ratio: float = -1,
    warmup_register_type: RegisterType = "base",
    kwargs: Kwargs | None = None,
    table: Registry = SCHEDULES,
) -> Schedule:
    """Build the learning rate of every step from the ``lr_scheduler`` section of a config; ``table`` has the curves.

    With ``warmup_register_type: base``, ``base_lr`` is per image: the target is ``base_lr`` · ``global_batch_size``; with
    ``no_scale_lr`` it is ``base_lr``. Warm-up lasts max(``warmup_iter``, ⌊``warmup_epochs`` · ``updates_per_epoch``⌋,
    ``warmup_share`` · ``total_updates``) steps and starts from ``warmup_ratio`` · target, or from ``base_lr`` if the ratio is
    negative. ``total_updates`` is the length of the run in steps, which some curves need. ``kwargs`` are the curve's own.
    Raises ``UserError`` for unknown names and for values out of range.
    """
    target = base_lr * global_batch_size if warmup_register_type == "base" else base_lr
    start = warmup_ratio * target if warmup_ratio >= 0 else base_lr
    if warmup_share and total_updates is None:
        raise UserError("needs the length of the run: give total_updates", key="warmup_share")
    steps = max(warmup_iter, int(warmup_epochs * updates_per_epoch + _ROUNDING), round(warmup_share * (total_updates or 0)))
    if warmup_type == "exp" and steps and start == 0 and target > 0:
        raise UserError(
            "exp warm-up cannot start from 0", key="warmup_ratio", fix="Set it above 0, or warmup_type: linear or cosine."
        )
    make = table.get(type)
    problems = check_kwargs(make, kwargs or {}, {}, owner=type)
    if problems:
        raise UserError.of(problems)
    run = Run(base=target, steps_per_epoch=updates_per_epoch, total=total_updates, warmup=steps)
    schedule = Schedule(make(**kwargs or {}), warmup=Warmup(warmup_type, start, steps), run=run)
    schedule(steps)  # a curve that needs the length of the run raises now
    return schedule
