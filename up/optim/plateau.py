"""The learning rate that falls when a metric stops improving: a function of the step and of the metrics seen so far."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from up.config.argument import NotNegative, Unit
from up.config.checked import checked
from up.optim.curves import Curve, Run
from up.types import StateDict


class ReduceLROnPlateau(Curve):
    """Times ``factor`` when the metric has not improved for more than ``patience`` evaluations.

    The metric is the one that chooses the best checkpoint, so more is better unless ``mode`` is ``min``. The other
    settings are those of torch's scheduler of this name; ``cooldown`` counts evaluations too.
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
        """The learning rate of the update ``step``, from the evaluations after at most ``step`` updates."""
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
        """``best`` is kept with its sign, so that more is better; a NaN never improves."""
        if math.isinf(best):
            return not math.isnan(metric)
        margin = self.threshold * (self.sign * best if self.relative else 1.0)
        return self.sign * metric > best + margin

    def observe(self, step: int, metric: float) -> None:
        """Keep the ``metric`` of the evaluation after ``step`` updates."""
        self._history[step] = float(metric)

    def state_dict(self) -> StateDict:
        """The metrics seen so far."""
        return {"history": [[step, metric] for step, metric in sorted(self._history.items())]}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from ``state_dict()``."""
        self._history = {int(step): float(metric) for step, metric in state.get("history", [])}
