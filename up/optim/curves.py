"""Curves of the learning rate after its warm-up, pure functions (step, run) -> learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from up.config.argument import Fraction, NotNegative, Positive, Unit
from up.config.checked import checked, require_in_range
from up.errors import UserError
from up.types import StateDict

Length: TypeAlias = Annotated[float, Field(gt=0), Unit("epochs")]
Epochs: TypeAlias = Annotated[float, Field(ge=0), Unit("epochs")]


@dataclass(frozen=True)
class Run:
    """Target learning rate of a run, and its lengths in steps."""

    base: float
    steps_per_epoch: int
    total: int | None = None
    warmup: int = 0

    def steps(self, epochs: float) -> int:
        """Convert ``epochs`` to whole steps, at least one."""
        return max(1, round(epochs * self.steps_per_epoch))

    def length(self, curve: str, epochs: float | None = None) -> int:
        """Convert ``epochs`` to steps; None is the whole run. Raises ``UserError`` if its length is not known."""
        if epochs is not None:
            return self.steps(epochs)
        if self.total is None:
            raise UserError(f"{curve} needs the length of the run: give total_updates")
        return self.total


class Curve(ABC):
    """Base of curves; one that depends on more than the step overrides the last three methods."""

    def __post_init__(self) -> None:
        """Check the settings of a dataclass against their annotated ranges."""
        require_in_range(type(self).__init__, vars(self))

    @abstractmethod
    def __call__(self, step: int, run: Run) -> float:
        """Compute the learning rate of ``step``."""

    def observe(self, step: int, metric: float) -> None:  # noqa: B027 - most curves do not use it
        """Take the ``metric`` of the evaluation after ``step`` steps."""

    def state_dict(self) -> StateDict:
        """Return the state beside the step."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027 - most curves have none
        """Restore ``state_dict()``."""


def cosine(step: int, *, base: float, floor: float, start: int, total: int) -> float:
    """Half a cosine from ``base`` at ``start`` to ``floor`` at ``total`` (SGDR, Loshchilov and Hutter 2017, eq. 5)."""
    if total <= start:
        return floor
    return floor + (base - floor) * (1 + math.cos(math.pi * (step - start) / (total - start))) / 2


def progress(step: int, *, start: int, total: int) -> float:
    """Compute the share of [``start``, ``total``] before ``step``, from 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, total - start)))


class Constant(Curve):
    """The target at every step."""

    def __call__(self, step: int, run: Run) -> float:
        return run.base


@dataclass(frozen=True, kw_only=True)
class MultiStepLR(Curve):
    """Times ``gamma`` at each of ``milestones`` (epochs)."""

    milestones: list[Epochs]
    gamma: NotNegative = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.milestones) != list(self.milestones):
            raise UserError(got=self.milestones, expected="rising epochs", key="milestones")

    def __call__(self, step: int, run: Run) -> float:
        return run.base * self.gamma ** sum(step >= run.steps(epoch) for epoch in self.milestones)


@dataclass(frozen=True, kw_only=True)
class StepLR(Curve):
    """Times ``gamma`` every ``step_size`` epochs."""

    step_size: Length
    gamma: NotNegative = 0.1

    def __call__(self, step: int, run: Run) -> float:
        return float(run.base * self.gamma ** (step // run.steps(self.step_size)))


@dataclass(frozen=True, kw_only=True)
class PolyLR(Curve):
    """(1 - progress) ** ``power``, from the end of warm-up to ``T_max`` epochs (the whole run), down to ``eta_min``."""

    power: Positive = 0.9
    T_max: Length | None = None
    eta_min: NotNegative = 0.0

    def __call__(self, step: int, run: Run) -> float:
        behind = progress(step, start=run.warmup, total=run.length("polylr", self.T_max))
        return float(self.eta_min + (run.base - self.eta_min) * (1 - behind) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Linear(Curve):
    """A straight line from the end of warm-up to ``eta_min`` at the end of the run."""

    eta_min: NotNegative = 0.0

    def __call__(self, step: int, run: Run) -> float:
        behind = progress(step, start=run.warmup, total=run.length("linear"))
        return run.base + (self.eta_min - run.base) * behind


@dataclass(frozen=True, kw_only=True)
class CosineAnnealingLR(Curve):
    """Half a cosine, step by step, to ``eta_min`` at ``T_max`` epochs (the whole run), after which it rises again.

    ``warmup_iter`` is the first step of the curve, by default the end of warm-up; with another value the learning rate
    jumps there.
    """

    T_max: Length | None = None
    eta_min: NotNegative = 0.0
    warmup_iter: Annotated[int, Field(ge=0), Unit("steps")] | None = None

    def __call__(self, step: int, run: Run) -> float:
        start = run.warmup if self.warmup_iter is None else self.warmup_iter
        total = run.length("CosineAnnealingLR", self.T_max)
        return cosine(step, base=run.base, floor=self.eta_min, start=start, total=total)


@dataclass(frozen=True, kw_only=True)
class CosineLREpochScheduler(Curve):
    """Half a cosine that moves once an epoch, from epoch ``warm_epoch`` over ``T_max`` epochs down to ``eta_min``."""

    T_max: Length
    eta_min: NotNegative = 0.0
    warm_epoch: Annotated[float, Unit("epochs")] = 0

    def __call__(self, step: int, run: Run) -> float:
        epoch = step // run.steps_per_epoch
        angle = math.pi * (epoch - self.warm_epoch) / self.T_max
        return self.eta_min + (run.base - self.eta_min) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True, kw_only=True)
class EpochBasedCosineAnnealingLR(Curve):
    """Half a cosine that moves once an epoch, over ``T_max`` epochs, to ``eta_min`` times the target.

    It begins at epoch ``offset_epoch``; before, the learning rate is the target.
    """

    T_max: Length
    eta_min: Fraction = 0.0
    offset_epoch: Epochs = 0

    def __call__(self, step: int, run: Run) -> float:
        epoch = max(0, step // run.steps_per_epoch - self.offset_epoch)
        return run.base * ((1 + math.cos(math.pi * epoch / self.T_max)) / 2 * (1 - self.eta_min) + self.eta_min)


@dataclass(frozen=True, kw_only=True)
class SlantedTriangle(Curve):
    """Up for ``cut_fraction`` of the run, down for the rest, from and to target / ``ratio`` (ULMFiT, eq. 3)."""

    cut_fraction: Fraction = 0.1
    ratio: Annotated[float, Field(ge=1)] = 32

    def __call__(self, step: int, run: Run) -> float:
        total = run.length("slanted_triangle")
        cut = total * self.cut_fraction
        height = step / cut if step < cut else 1 - (step - cut) / (total - cut) if step < total else 0.0
        return run.base * (1 + height * (self.ratio - 1)) / self.ratio


@dataclass(frozen=True, kw_only=True)
class OneCycleLR(Curve):
    """Up to ``max_lr`` (the target) and down again, as torch's scheduler of this name (Smith and Topin 2018).

    It starts from ``max_lr`` / ``div_factor``, turns at ``pct_start`` of ``total_steps`` (the whole run) and ends at
    the start's ``final_div_factor``-th part; with ``three_phase`` the way down first mirrors the way up.
    """

    max_lr: NotNegative | None = None
    total_steps: Annotated[int, Field(ge=1), Unit("steps")] | None = None
    pct_start: Fraction = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: Positive = 25.0
    final_div_factor: Positive = 1e4
    three_phase: bool = False

    def __call__(self, step: int, run: Run) -> float:
        total = self.total_steps or run.length("OneCycleLR")
        top = run.base if self.max_lr is None else self.max_lr
        first = top / self.div_factor
        last = first / self.final_div_factor
        turn = self.pct_start * total - 1
        corners = [(0.0, first), (turn, top), *([(2 * turn, first)] if self.three_phase else []), (total - 1.0, last)]
        for (start, low), (end, high) in zip(corners, corners[1:], strict=False):
            if step <= end:
                return self._between(low, high, (step - start) / (end - start) if end > start else 1.0)
        return last

    def _between(self, start: float, end: float, part: float) -> float:
        return start + (end - start) * ((1 - math.cos(math.pi * part)) / 2 if self.anneal_strategy == "cos" else part)


class ReduceLROnPlateau(Curve):
    """Times ``factor`` when the metric has not improved for more than ``patience`` evaluations.

    The metric is that of the best checkpoint: more is better unless ``mode`` is ``min``. The other settings are those of
    torch's scheduler of this name; ``cooldown`` counts evaluations too.
    """

    @checked
    def __init__(
        self,
        *,
        mode: Literal["min", "max"] = "max",
        factor: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        patience: Annotated[int, Field(ge=0), Unit("evaluations")] = 10,
        threshold: NotNegative = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: Annotated[int, Field(ge=0), Unit("evaluations")] = 0,
        min_lr: NotNegative = 0.0,
        eps: NotNegative = 1e-8,
    ) -> None:
        self.sign = 1.0 if mode == "max" else -1.0
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.relative = threshold_mode == "rel"
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.eps = eps
        self._history: dict[int, float] = {}

    def __call__(self, step: int, run: Run) -> float:
        """Compute the learning rate of ``step`` from the evaluations after at most ``step`` steps."""
        lr, best, bad, resting = run.base, -math.inf, 0, 0
        for metric in (metric for seen, metric in sorted(self._history.items()) if seen <= step):
            bad = 0 if self._improves(metric, best) else bad + 1
            best = self.sign * metric if bad == 0 else best
            if resting:
                resting, bad = resting - 1, 0
            if bad > self.patience:
                lower = max(lr * self.factor, self.min_lr)
                lr = lower if lr - lower > self.eps else lr
                resting, bad = self.cooldown, 0
        return lr

    def _improves(self, metric: float, best: float) -> bool:
        """Compare with ``best``, which has the sign for which more is better; a NaN never improves."""
        if math.isinf(best):
            return not math.isnan(metric)
        margin = self.threshold * (self.sign * best if self.relative else 1.0)
        return self.sign * metric > best + margin

    def observe(self, step: int, metric: float) -> None:
        """Store the ``metric`` of the evaluation after ``step`` steps."""
        self._history[step] = float(metric)

    def state_dict(self) -> StateDict:
        """Return the metrics so far."""
        return {"history": [[step, metric] for step, metric in sorted(self._history.items())]}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore ``state_dict()``."""
        self._history = {int(step): float(metric) for step, metric in state.get("history", [])}
