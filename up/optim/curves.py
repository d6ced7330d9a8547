"""The curves that a learning rate may follow after its warm-up. Each is (step, run) -> learning rate, and pure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from up.config.argument import Fraction, NotNegative, Positive, Unit
from up.config.checked import require_in_range
from up.errors import UserError
from up.types import StateDict

Length: TypeAlias = Annotated[float, Field(gt=0), Unit("epochs")]
Epochs: TypeAlias = Annotated[float, Field(ge=0), Unit("epochs")]


@dataclass(frozen=True)
class Run:
    """What a curve knows of the run: the target rate, and lengths in updates."""

    base: float
    updates_per_epoch: int
    total: int | None = None
    warmup: int = 0

    def updates(self, epochs: float) -> int:
        """``epochs`` in whole updates, at least one."""
        return max(1, round(epochs * self.updates_per_epoch))

    def length(self, who: str, epochs: float | None = None) -> int:
        """``epochs`` in updates, or those of the whole run if None."""
        if epochs is not None:
            return self.updates(epochs)
        if self.total is None:
            raise UserError(f"{who} needs the length of the run: give total_updates")
        return self.total


class Curve(ABC):
    """What all curves can do; a curve whose rate depends on more than the step overrides the last three."""

    def __post_init__(self) -> None:
        """Hold the settings of a dataclass to their annotated ranges."""
        require_in_range(type(self).__init__, vars(self))

    @abstractmethod
    def __call__(self, step: int, run: Run) -> float:
        """The learning rate of the update ``step``."""

    def observe(self, step: int, metric: float) -> None:  # noqa: B027 - most curves have nothing to hear
        """Hear the ``metric`` of the evaluation after ``step`` updates."""

    def state_dict(self) -> StateDict:
        """What the step does not tell."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027 - nor to remember
        """Go on from ``state_dict()``."""


def cosine(step: int, *, base: float, floor: float, start: int, total: int) -> float:
    """Half a cosine from ``base`` at ``start`` to ``floor`` at ``total`` (SGDR, Loshchilov and Hutter 2017, eq. 5)."""
    if total <= start:
        return floor
    return floor + (base - floor) * (1 + math.cos(math.pi * (step - start) / (total - start))) / 2


def progress(step: int, *, start: int, total: int) -> float:
    """How much of [``start``, ``total``] lies behind ``step``, from 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, total - start)))


class Constant(Curve):
    """The target, always."""

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
        return run.base * self.gamma ** sum(step >= run.updates(epoch) for epoch in self.milestones)


@dataclass(frozen=True, kw_only=True)
class StepLR(Curve):
    """Times ``gamma`` every ``step_size`` epochs."""

    step_size: Length
    gamma: NotNegative = 0.1

    def __call__(self, step: int, run: Run) -> float:
        return float(run.base * self.gamma ** (step // run.updates(self.step_size)))


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
    """Half a cosine, step by step, to ``eta_min`` at ``T_max`` epochs (the whole run); past it the rate rises again.

    ``warmup_iter`` is the step where the curve begins. Left out, that is where warm-up ends; written, it is what is
    written, with a jump if warm-up ends elsewhere.
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
        epoch = step // run.updates_per_epoch
        angle = math.pi * (epoch - self.warm_epoch) / self.T_max
        return self.eta_min + (run.base - self.eta_min) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True, kw_only=True)
class EpochBasedCosineAnnealingLR(Curve):
    """Half a cosine that moves once an epoch, over ``T_max`` epochs, to the part ``eta_min`` of the target.

    It begins at epoch ``offset_epoch``; before that the rate is the target.
    """

    T_max: Length
    eta_min: Fraction = 0.0
    offset_epoch: Epochs = 0

    def __call__(self, step: int, run: Run) -> float:
        epoch = max(0, step // run.updates_per_epoch - self.offset_epoch)
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
