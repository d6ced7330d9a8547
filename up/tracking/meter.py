"""Running means of the scalars of steps, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from up.engine.hooks import Hook, Outline, UpdateReport
from up.types import StateDict


class WindowMeter:
    """Means over the steps since the last reading."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._updates = 0

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add a step; adds on the device, without waiting for it."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._updates += 1

    def read(self) -> dict[str, float]:
        """Return the means as numbers, which waits for the device, and start anew."""
        means = {name: float(total) / self._updates for name, total in self._sums.items()}
        self._sums, self._updates = {}, 0
        return means

    def state_dict(self) -> StateDict:
        """Return the state that a resumed run needs to report the same means."""
        return {"sums": dict(self._sums), "updates": self._updates}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._sums, self._updates = dict(state["sums"]), state["updates"]


class WindowHook(Hook):
    """Base of hooks that report means every ``every`` steps and at the last, across a resume too."""

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.window = WindowMeter()

    def on_start(self, outline: Outline, step: int) -> None:
        self.outline = outline

    def on_step(self, report: UpdateReport) -> None:
        self.window.add(report.scalars)
        if report.step % self.every == 0 or report.step == self.outline.total_steps:
            self.on_means(report, self.window.read())

    def on_means(self, report: UpdateReport, means: Mapping[str, float]) -> None:
        """Called with the means over the steps since the last call."""

    def state_dict(self) -> StateDict:
        """Return the sums since the last report."""
        return self.window.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self.window.load_state_dict(state)
