"""Early stopping: end training when the evaluations no longer improve."""

from __future__ import annotations

import math
from collections.abc import Mapping

from up.errors import UserError
from up.text import did_you_mean, some_of
from up.types import StateDict


def smaller_is_better(metric: str) -> bool:
    """Check whether smaller values of a metric are better: those of losses, by its name."""
    return metric.endswith("loss")


class EarlyStopping:
    """Stop after ``patience`` evaluations in a row without an improvement by more than ``min_delta`` (Prechelt 1998, UP_s).

    ``metric`` is a name of the log, such as ``loss`` or ``ema_top1``; None is the metric that chooses the best checkpoint, of
    which more is better. The first evaluation always improves; a value that is not a number never does. ``patience`` None never
    stops.
    """

    def __init__(self, *, patience: int | None = None, min_delta: float = 0.0, metric: str | None = None) -> None:
        self.patience, self.min_delta, self.metric = patience, min_delta, metric
        self._best: float | None = None
        self._best_step = self._waited = 0

    def observe(self, step: int, metrics: Mapping[str, float], main: str) -> None:
        """Count the evaluation after ``step`` steps, whose main metric is ``main``. Raises ``UserError`` if it lacks ``metric``."""
        if self.patience is None:
            return
        self.require(metrics)
        value = metrics.get(self.metric or main, math.nan) * self._sign
        if value > (-math.inf if self._best is None else self._best + self.min_delta):
            self._best, self._best_step, self._waited = value, step, 0
        else:
            self._waited += 1

    def require(self, metrics: Mapping[str, object]) -> None:
        """Raise ``UserError`` if the evaluation gives no ``metric``."""
        if self.metric is not None and self.metric not in metrics:
            fix = f"Name one of them.{did_you_mean(self.metric, metrics)}"
            raise UserError(got=self.metric, expected=f"a metric of the evaluation: {some_of(metrics, 12)}", key="metric", fix=fix)

    @property
    def _sign(self) -> int:
        return -1 if self.metric is not None and smaller_is_better(self.metric) else 1

    @property
    def is_over(self) -> bool:
        """Whether training is to stop."""
        return self.patience is not None and self._waited >= self.patience

    @property
    def reason(self) -> str:
        """The rule that stops training, for the log and ``status.json``; empty before."""
        if not self.is_over:
            return ""
        best = "no number among them"
        if self._best is not None:
            best = f"the best, {self._sign * self._best:.4g}, was at step {self._best_step:,}"
        return f"early stopping: {self._waited} evaluations without a better {self.metric or 'main metric'} ({best})"

    def state_dict(self) -> StateDict:
        """Return the best value and the number of evaluations since."""
        return {"best": self._best, "step": self._best_step, "waited": self._waited}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; of a checkpoint without one, from the beginning."""
        if state:
            self._best, self._best_step, self._waited = state["best"], state["step"], state["waited"]
