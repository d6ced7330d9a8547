"""The learning rate as a pure function of the step: warm-up towards the target, then one of the curves below.

Steps are optimizer updates, counted from 0. Epochs in ``kwargs`` become updates by ``updates_per_epoch``. A curve takes
(step, run) and knows nothing of the warm-up but its length; resuming needs the step alone (and, for
``ReduceLROnPlateau``, the metrics seen so far).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from up.config.argument import AtLeast0, AtLeast1, NotNegative
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
        "ReduceLROnPlateau": "up.optim.plateau:ReduceLROnPlateau",
        "CosineAnnealingLR": "up.optim.curves:CosineAnnealingLR",
        "CosineLREpochScheduler": "up.optim.curves:CosineLREpochScheduler",
        "EpochBasedCosineAnnealingLR": "up.optim.curves:EpochBasedCosineAnnealingLR",
        "constant": "up.optim.curves:Constant",
        "linear": "up.optim.curves:Linear",
        "slanted_triangle": "up.optim.curves:SlantedTriangle",
    },
)

WarmupType = Literal["exp", "linear", "cosine"]
RegisterType = Literal["base", "no_scale_lr"]


@dataclass(frozen=True)
class Warmup:
    """The first ``updates`` steps, from ``start`` to the target, which the last of them reaches."""

    type: WarmupType
    start: float
    updates: int

    def __call__(self, step: int, target: float) -> float:
        """The learning rate of a ``step`` below ``updates``."""
        progress = step / max(1, self.updates - 1)
        if self.type == "exp":
            return self.start * (target / self.start) ** progress if self.start > 0 else target
        if self.type == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (target - self.start) * progress


class Schedule:
    """step -> learning rate of the group with ``lr_scale`` 1."""

    def __init__(self, curve: Curve, *, warmup: Warmup, run: Run) -> None:
        self._curve = curve
        self._warmup = warmup
        self._run = run

    def __call__(self, step: int) -> float:
        """The learning rate of the update ``step`` (from 0)."""
        if step < self._warmup.updates:
            return self._warmup(step, self._run.base)
        return self._curve(step, self._run)

    def extremes(self, total: int) -> tuple[float, tuple[int, float], float]:
        """Of a run of ``total`` updates: the first learning rate, the highest with its update (from 0), and the last.

        Of long runs a thousand updates are looked at, and the last one of the warm-up.
        """
        looked_at = {*range(0, total, max(1, total // 1000)), min(self._warmup.updates, total) - 1, total - 1}
        rates = {step: self(step) for step in sorted(step for step in looked_at if step >= 0)}
        highest = max(rates, key=rates.__getitem__)
        return rates[0], (highest, rates[highest]), rates[total - 1]

    def observe(self, step: int, metric: float) -> None:
        """Hear the ``metric`` of the evaluation after ``step`` updates; only ``ReduceLROnPlateau`` listens."""
        self._curve.observe(step, metric)

    def state_dict(self) -> StateDict:
        """What the step does not tell: nothing, but for ``ReduceLROnPlateau``."""
        return self._curve.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from ``state_dict()``."""
        self._curve.load_state_dict(state)


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
    warmup_type: WarmupType = "exp",
    warmup_ratio: float = -1,
    warmup_register_type: RegisterType = "base",
    kwargs: Kwargs | None = None,
    table: Registry = SCHEDULES,
) -> Schedule:
    """The learning rate of every step, from the ``lr_scheduler`` section of a config; ``table`` has the curves.

    ``warmup_register_type: base`` says that ``base_lr`` is meant for one image: the target is ``base_lr`` ·
    ``global_batch_size``; with ``no_scale_lr`` it is ``base_lr``. Warm-up lasts max(``warmup_iter``, ``warmup_epochs``
    · ``updates_per_epoch``) updates and starts from ``warmup_ratio`` · target, or from ``base_lr`` if the ratio is
    negative. ``total_updates`` is the length of the run, which some curves need. ``kwargs`` are the curve's own.
    Raises ``UserError`` for unknown names and for values out of range.
    """
    target = base_lr * global_batch_size if warmup_register_type == "base" else base_lr
    start = warmup_ratio * target if warmup_ratio >= 0 else base_lr
    updates = max(warmup_iter, int(warmup_epochs * updates_per_epoch))
    if warmup_type == "exp" and updates and start == 0 and target > 0:
        raise UserError(
            "exp warm-up cannot start from 0", key="warmup_ratio", fix="Set it above 0, or warmup_type: linear or cosine."
        )
    run = Run(base=target, updates_per_epoch=updates_per_epoch, total=total_updates, warmup=updates)
    schedule = Schedule(build_curve(type, kwargs or {}, table), warmup=Warmup(warmup_type, start, updates), run=run)
    schedule(updates)  # a curve that needs the length of the run says so now
    return schedule


def build_curve(type: str, kwargs: Kwargs, table: Registry = SCHEDULES) -> Curve:
    """The curve ``type`` with its own ``kwargs``."""
    make = table.get(type)
    problems = check_kwargs(make, kwargs, {}, owner=type)
    if problems:
        raise UserError.of(problems)
    curve: Curve = make(**kwargs)
    return curve
