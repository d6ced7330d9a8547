"""The learning rate that falls when a metric stops improving: a function of the step and of the metrics seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from up.errors import UserError
from up.optim.curves import Curve, Run, zero_or_more


class ReduceLROnPlateau(Curve):
    """Times ``factor`` when the metric has not improved for more than ``patience`` evaluations.

    The metric is the one that chooses the best checkpoint, so more is better unless ``mode`` is ``min``. The other
    settings are those of torch's scheduler of this name; ``cooldown`` counts evaluations too.
    """

    def __init__(
        self,
        *,
        mode: Literal["min", "max"] = "max",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("min", "max"):
            raise UserError(f"mode is {mode!r}, expected min or max")
        if threshold_mode not in ("rel", "abs"):
            raise UserError(f"threshold_mode is {threshold_mode!r}, expected rel or abs")
        if not 0 <= factor < 1:
            raise UserError(f"factor is {factor}, expected a number from 0 to below 1")
        lengths = {"patience": patience, "threshold": threshold, "cooldown": cooldown, "min_lr": min_lr, "eps": eps}
        for name, value in lengths.items():
            zero_or_more(name, value)
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

    def state_dict(self) -> dict[str, Any]:
        """The metrics seen so far."""
        return {"history": [[step, metric] for step, metric in sorted(self._history.items())]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self._history = {int(step): float(metric) for step, metric in state.get("history", [])}
