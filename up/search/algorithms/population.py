"""Population based training: members that train side by side, the worst of which continue from copies of the best."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.search.algorithm import WAIT, Algorithm, History, Suggestion, Trial, Work
from up.search.algorithms.brackets import Share, loss_at
from up.search.space import Point, Space
from up.types import Json


@dataclass(frozen=True)
class Exploit:
    """A member to replace, ``slot``, by a copy of the member ``donor``, both positions in the population."""

    slot: int
    donor: int


def exploits(losses: Sequence[float], seed: Sequence[int], quantile: float = 0.25) -> list[Exploit]:
    """Choose for each of the worst quarter a donor among the best quarter, at random (Jaderberg et al. 2017, truncation selection).

    A member that failed has an infinite loss; it is replaced even where more than a quarter failed. Donors are sound.
    """
    ranked = sorted(range(len(losses)), key=lambda slot: (losses[slot], slot))
    quarter = max(1, int(len(losses) * quantile))
    sound = [slot for slot in ranked if losses[slot] < np.inf]
    worst = [slot for at, slot in enumerate(ranked) if at >= len(ranked) - quarter or losses[slot] == np.inf]
    best = sound[: min(quarter, len(sound))]
    chosen = []
    for slot in worst if best else []:
        donor = best[int(np.random.default_rng([*seed, slot]).integers(len(best)))]
        if donor != slot:
            chosen.append(Exploit(slot, donor))
    return chosen


def explore(space: Space, point: Point, rng: np.random.Generator, *, resample: float, factors: Sequence[float]) -> Point:
    """Change each key of ``point``: draw it again with probability ``resample``, otherwise multiply it by one of ``factors``.

    Numbers stay within their range; a key with a list of values is drawn again or stays. A result that ``forbid`` excludes is
    drawn again (Jaderberg et al. 2017, §4.1.1).
    """
    for _ in range(100):
        changed = dict(point)
        for path in point:
            if path in changed:
                changed = dict(_perturbed(space, changed, path, rng, resample, factors))
        if not space.is_forbidden(changed):
            return changed
    return space.sample(rng)


def _perturbed(space: Space, point: Point, path: str, rng: np.random.Generator, resample: float, factors: Sequence[float]) -> Point:
    dimension = space[path]
    if rng.random() < resample:
        return space.resample(point, path, rng)
    if dimension.values is not None:
        return point
    number = min(max(point[path] * factors[int(rng.integers(len(factors)))], dimension.low), dimension.high)
    return {**point, path: dimension.at(dimension.share_of(number))}


class Population(Algorithm):
    """A population that trains in rungs of ``epochs_per_rung`` epochs, each rung complete before the next one begins.

    So the decisions depend on the results alone, not on the number of workers. A member is a row of trials: a survivor continues in
    its own trial, a copy is a new trial that inherits from its donor's, whose number is its ``parent``.
    """

    one_objective = True
    sets_length = True

    def __init__(self, population: int, rungs: int, epochs_per_rung: int, quantile: float) -> None:
        self.population, self.rungs, self.epochs_per_rung, self.quantile = population, rungs, epochs_per_rung, quantile

    @property
    def max_epoch(self) -> int:
        """Epochs that a member trains in all."""
        return self.rungs * self.epochs_per_rung

    @abstractmethod
    def first(self, history: History, slot: int) -> Point:
        """Return the point of a member at the start."""

    def fragments(self, history: History, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return ``lineage.csv``: the trials that led to the best one, with the epoch at which each begins and its settings."""
        line = lineage(history, history.best, self.epochs_per_rung) if history.best is not None else []
        rows = [{"epoch": epoch, "trial": each.number, **self.described(each.point)} for epoch, each in line]
        return {"lineage.csv": rows}

    def described(self, point: Point) -> Mapping[str, Json]:
        """Return a point as columns of ``lineage.csv``."""
        return point

    @abstractmethod
    def changed(self, history: History, point: Point, rung: int, slot: int) -> Point:
        """Return the donor's point as a copy changes it."""

    def suggest(self, history: History) -> Suggestion:
        """Return the next member of the rung that has trials to train; copies start before their donors continue."""
        kept = [each for each in history.trials if "slot" in each.note and each.state != "rejected"]
        places = {(each.note["slot"], each.note["rung"]): each for each in kept}
        members: list[Trial | None] = [places.get((slot, 0)) for slot in range(self.population)]
        for rung in range(self.rungs):
            losses = self._losses(history, members, rung)
            if losses is None:
                return self._work_at(history, members, rung)
            if rung + 1 == self.rungs or min(losses) == np.inf:
                break
            copies = exploits(losses, [history.seed, rung], self.quantile)
            donors = {each.slot: members[each.donor] for each in copies}
            for each in copies:
                members[each.slot] = places.get((each.slot, rung + 1))
            for slot, donor in donors.items():
                if members[slot] is None:
                    assert donor is not None
                    return self._copy(history, donor, rung + 1, slot)
        return None

    def _losses(self, history: History, members: Sequence[Trial | None], rung: int) -> list[float] | None:
        """Return the loss of each member at the end of ``rung``, infinite if it failed in this rung; None until all have ended it.

        A member that failed in a later rung keeps its loss of this one, so that decisions do not change afterwards.
        """
        losses, epochs = [], (rung + 1) * self.epochs_per_rung
        for member in members:
            # a running member may have reported its last evaluation, but not yet written the checkpoint that is copied
            if member is None or (member.state == "running" and member.budget <= epochs):
                return None
            has_failed = member.state == "failed" and member.budget <= epochs
            loss = np.inf if has_failed else loss_at(history, member, epochs)
            if loss is None:
                return None
            losses.append(float(loss))
        return losses

    def _work_at(self, history: History, members: Sequence[Trial | None], rung: int) -> Suggestion:
        """Return a member that has not begun the rung: at first a new point, later the next epochs of a survivor."""
        epochs = (rung + 1) * self.epochs_per_rung
        for slot, member in enumerate(members):
            if member is None:
                return Work(self.first(history, slot), epochs=epochs, note={"slot": slot, "rung": rung})
            if member.state == "paused" and member.budget < epochs:
                return Work(continues=member.number, epochs=epochs)
        return WAIT

    def _copy(self, history: History, donor: Trial, rung: int, slot: int) -> Work:
        point = self.changed(history, donor.point, rung, slot)
        note = {"slot": slot, "rung": rung}
        return Work(point, epochs=(rung + 1) * self.epochs_per_rung, inherits=donor.number, note=note)


def lineage(history: History, trial: Trial, epochs_per_rung: int) -> list[tuple[int, Trial]]:
    """Return the trials whose training led to ``trial``, the first one first, each with the epoch at which it began."""
    line = [(int(trial.note.get("rung", 0)) * epochs_per_rung, trial)]
    while trial.parent is not None:
        trial = history.trials[trial.parent]
        line.append((int(trial.note.get("rung", 0)) * epochs_per_rung, trial))
    return line[::-1]


class Pbt(Population):
    """Population based training (Jaderberg et al. 2017): one training of a population finds a schedule of settings.

    After each rung of ``epochs_per_rung`` epochs the worst share ``quantile`` continues from the weights and the settings of
    members among the best share, each setting multiplied by one of ``factors``, or drawn again with probability ``resample``.
    """

    @checked
    def __init__(
        self,
        *,
        population: Annotated[int, Field(ge=4)] = 16,
        rungs: AtLeast1 = 10,
        epochs_per_rung: AtLeast1 = 1,
        quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25,
        resample: Share = 0.25,
        factors: Annotated[tuple[float, ...], Field(min_length=1)] = (1.2, 0.8),
    ) -> None:
        super().__init__(population, rungs, epochs_per_rung, quantile)
        self.resample, self.factors = resample, factors

    def first(self, history: History, slot: int) -> Point:
        return history.space.sample(history.rng())

    def changed(self, history: History, point: Point, rung: int, slot: int) -> Point:
        return explore(history.space, point, history.rng(), resample=self.resample, factors=self.factors)
