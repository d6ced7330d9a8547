"""Population based augmentation: a population finds a schedule of augmentation policies (Ho et al. 2019, arXiv 1905.05393)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.search.algorithm import History, Trial
from up.search.algorithms.brackets import Share
from up.search.algorithms.population import Population, lineage
from up.search.space import Point
from up.tasks.cls.augment.pba import COPIES, MAX_MAGNITUDE, MAX_PROBABILITY, OPERATIONS
from up.types import Json

TRANSFORMS_PATH = "dataset.train.dataset.kwargs.transformer"
TYPE = "pba_schedule"
_AFTER = ("cutout", "gridmask", "hide_and_seek", "views", "to_tensor", "custom_to_tensor")
_RULES = [f"{operation}.{copy}" for operation in OPERATIONS for copy in range(1, COPIES + 1)]
RANGES = {
    f"{rule}.{name}": top for rule in _RULES for name, top in (("probability", MAX_PROBABILITY), ("magnitude", MAX_MAGNITUDE))
}
"""The 60 integers of a policy with the largest value of each; the smallest is 0."""


def explored(values: Mapping[str, int], rng: np.random.Generator, resample: float = 0.2) -> dict[str, int]:
    """Change the integers of a policy (algorithm 2): drawn again with probability ``resample``, otherwise plus or minus 0 to 3."""
    changed = {}
    for name, value in values.items():
        top = RANGES[name]
        if rng.random() < resample:
            changed[name] = int(rng.integers(top + 1))
        else:
            amount = int(rng.integers(4))
            changed[name] = min(max(value + (amount if rng.random() < 0.5 else -amount), 0), top)
    return changed


def policy_of(point: Point) -> list[list[Json]]:
    """Return the rules of a policy as ``pba_schedule`` takes them, without those that never fire."""
    rules = []
    for rule in _RULES:
        probability, magnitude = point[f"{rule}.probability"], point[f"{rule}.magnitude"]
        if probability:
            rules.append([rule.partition(".")[0], probability, magnitude])
    return rules


class Pba(Population):
    """Population based augmentation: a schedule of augmentation policies, found in one training of a population.

    A policy has each of 15 operations twice, with a probability (0 to 10) and a magnitude (0 to 9): 60 integers, all 0 at first.
    After each rung the worst quarter copies weights and policy of a member of the best quarter, and changes the policy: each
    integer is drawn again with probability ``resample``, otherwise it moves by 0 to 3. The result is the schedule along the
    ancestors of the best member; ``pba_schedule`` replays it by the share of the epochs.
    """

    @checked
    def __init__(
        self,
        *,
        population: Annotated[int, Field(ge=4)] = 16,
        rungs: AtLeast1 = 40,
        epochs_per_rung: AtLeast1 = 3,
        quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25,
        resample: Share = 0.2,
    ) -> None:
        super().__init__(population, rungs, epochs_per_rung, quantile)
        self.resample = resample

    def space(self) -> Mapping[str, Json]:
        """Return the 60 integers of a policy."""
        return {name: {"range": [0, top], "int": True} for name, top in RANGES.items()}

    def first(self, history: History, slot: int) -> Point:
        """Return the policy that changes nothing."""
        return dict.fromkeys(RANGES, 0)

    def changed(self, history: History, point: Point, rung: int, slot: int) -> Point:
        """Return the donor's policy, changed."""
        return explored(point, history.rng(), self.resample)

    def settings(self, trial: Trial, history: History, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the training transforms of ``config`` with the schedule that led to ``trial``, its own policy last."""
        return {TRANSFORMS_PATH: with_schedule(_transforms(config), self.schedule(trial, history))}

    def fragments(self, history: History, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return ``schedule.yaml`` of the best trial, and its ancestors in ``lineage.csv``."""
        found = super().fragments(history, config)
        return found if history.best is None else {**found, "schedule.yaml": self.settings(history.best, history, config)}

    def described(self, point: Point) -> Mapping[str, Json]:
        """Return the policy as one text: ``Rotate 3/5`` fires with probability .3 at magnitude 5."""
        rules = ", ".join(f"{name} {probability}/{magnitude}" for name, probability, magnitude in policy_of(point))
        return {"policy": rules or "no operation"}

    def schedule(self, trial: Trial, history: History) -> list[Json]:
        """Return the policies along the ancestors of ``trial``, with the share of the epochs at which each begins."""
        line = lineage(history, trial, self.epochs_per_rung)
        return [{"start": epoch / self.max_epoch, "policy": policy_of(each.point)} for epoch, each in line]


def with_schedule(transforms: Sequence[Mapping[str, Json]], schedule: Sequence[Json]) -> list[Json]:
    """Return ``transforms`` with ``pba_schedule``: in its place if it is there, otherwise before cutout and ``to_tensor``."""
    part = {"type": TYPE, "kwargs": {"schedule": list(schedule)}}
    types = [each.get("type") for each in transforms]
    if TYPE in types:
        return [part if name == TYPE else each for each, name in zip(transforms, types, strict=True)]
    at = next((at for at, name in enumerate(types) if name in _AFTER), len(types))
    return [*transforms[:at], part, *transforms[at:]]


def _transforms(config: Json) -> Sequence[Mapping[str, Json]]:
    for name in TRANSFORMS_PATH.split("."):
        config = config.get(name) or {}
    return config or []
