"""Running means of what a step shows, kept on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from up.distributed.group import means_over_ranks
from up.engine.step import StepOutput


class StepMeter:
    """Sums the scalars of one update's micro-batches, each weighted as its loss is: the ranks' mean is that over all images."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, output: StepOutput, weight: float) -> None:
        """Take in one micro-batch."""
        for name, value in output.shown().items():
            self._sums[name] = self._sums[name] + value * weight if name in self._sums else value * weight

    def held(self, name: str) -> Tensor | None:
        """A scalar of the update in work, as far as it has come."""
        return self._sums.get(name)

    def parts_not_finite(self) -> list[str]:
        """The scalars beside the loss that are not finite: which term of it, say. Waits for the device."""
        return [name for name, value in self._sums.items() if name != "loss" and not bool(value.isfinite().all())]

    def take(self) -> dict[str, Tensor]:
        """The update's scalars over all ranks, a collective operation; the meter is empty afterwards."""
        taken, self._sums = self._sums, {}
        return means_over_ranks(taken)


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

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know to report the same means."""
        return {"sums": dict(self._sums), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self._sums, self._updates = dict(state["sums"]), state["updates"]
