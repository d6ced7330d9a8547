"""Running means of what a step shows, kept on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from up.engine.hooks import Hook
from up.types import StateDict


class WindowMeter:
    """Means over the updates since the last reading."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._updates = 0

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take in one update; adds on the device, waits for nothing."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._updates += 1

    def read(self) -> dict[str, float]:
        """The means as numbers (this waits for the device), and a fresh start."""
        means = {name: float(total) / self._updates for name, total in self._sums.items()}
        self._sums, self._updates = {}, 0
        return means

    def state_dict(self) -> StateDict:
        """State that a resumed run needs to report the same means."""
        return {"sums": dict(self._sums), "updates": self._updates}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._sums, self._updates = dict(state["sums"]), state["updates"]


class WindowHook(Hook):
    """A hook that reports means over the steps since its last report, across a resume too."""

    def __init__(self) -> None:
        self._window = WindowMeter()

    def state_dict(self) -> StateDict:
        """The steps since the last report."""
        return self._window.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._window.load_state_dict(state)
