"""Brackets of Hyperband, and the decisions that BOHB and BOSS share: new points of the open bracket, further epochs for some."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, floor, inf, isnan, nan
from typing import Annotated, TypeAlias

from pydantic import Field

from up.search.algorithm import WAIT, Algorithm, History, Suggestion, Trial, Work
from up.search.algorithms.density import DensityModel
from up.search.space import Point

Eta: TypeAlias = Annotated[int, Field(ge=2)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Bracket:
    """A bracket: ``size`` points, each trained for ``budget`` epochs before any is dropped; ``s`` is its number of halvings."""

    s: int
    size: int
    budget: float


def brackets(max_epoch: int, eta: int) -> list[Bracket]:
    """Return the brackets of one iteration of Hyperband, the one with the most points first.

    s_max = ⌊ln R / ln η⌋ and B = (s_max + 1) R; bracket s has K = ⌈B η^s / (R (s + 1))⌉ points of b = R η^-s epochs (Li et al.
    2018, Hyperband, algorithm 1; Huang et al. 2020, BOSS, algorithm 2).
    """
    s_max = 0
    while eta ** (s_max + 1) <= max_epoch:  # not by logarithms: ln 243 / ln 3 is 4.99…
        s_max += 1
    return [Bracket(s, ceil((s_max + 1) * eta**s / (s + 1)), max_epoch / eta**s) for s in range(s_max, -1, -1)]


def rungs(min_epochs: float, max_epoch: int, eta: int) -> list[int]:
    """Return the epochs at which trials are compared: ``min_epochs`` times powers of ``eta``, rounded, and ``max_epoch``."""
    found, epochs = [], float(min_epochs)
    while epochs < max_epoch - 0.5:
        found.append(max(1, round(epochs)))
        epochs *= eta
    return [*found, max_epoch]


def loss_at(history: History, trial: Trial, epoch: int) -> float | None:
    """Return the first objective after ``epoch`` epochs, smaller is better; None before the trial has got there.

    Where a trial is not evaluated at every epoch, it is that of the last evaluation before; infinite if there was none, and for
    NaN.
    """
    has_paused = trial.state == "paused" and trial.budget >= epoch
    reached = trial.epoch >= epoch or has_paused or trial.state == "complete"
    seen = [each for each in trial.values if each <= epoch]
    if not reached:
        return None
    value = trial.values[max(seen)][0] if seen else nan
    loss = -value if history.directions[0] == "maximize" else value
    return inf if isnan(loss) else loss


def sound(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that were trained, or are: not those that failed or were rejected."""
    return [each for each in trials if each.state not in ("failed", "rejected")]


def has_room(history: History) -> bool:
    """Check whether the stage may start another point."""
    return not history.limit or len(sound(history.trials)) < history.limit


def wait_or_end(history: History) -> Suggestion:
    """Wait while a trial is running, and end the search after the last one."""
    return WAIT if any(each.state == "running" for each in history.trials) else None


def finish_best(history: History) -> Suggestion:
    """Wait while a trial is running; then, if none is complete, train the best of those with the most epochs to the end.

    With few points no trial is promoted to the last rung: all epochs would be spent without a result.
    """
    if history.complete or any(each.state == "running" for each in history.trials):
        return wait_or_end(history)
    paused = [each for each in history.trials if each.state == "paused" and each.values]
    most = max((each.epoch for each in paused), default=0)
    best = min((each for each in paused if each.epoch == most), key=lambda each: history.losses(each)[0], default=None)
    return None if best is None else Work(continues=best.number, epochs=history.max_epoch)


class Bracketed(Algorithm):
    """Brackets one after another; a free worker opens the next bracket while the trials of others are still running.

    The decisions of a bracket are those of its rounds: which trials train further is decided when all trials of the round before
    have reported. So they depend on the results alone, not on the number of workers or on the order in which they report.
    """

    def __init__(self, *, eta: int, model: DensityModel) -> None:
        self.eta, self.model = eta, model

    @abstractmethod
    def further(self, bracket: Bracket, members: Sequence[Trial], history: History) -> Mapping[int, int]:
        """Return the trials of a full bracket that train further in this round, with the epoch to which; empty at its end."""

    def suggest(self, history: History) -> Suggestion:
        """Return further epochs for a trial of the oldest bracket that has some, otherwise a new point."""
        table = brackets(history.max_epoch, self.eta)
        opened: dict[int, list[Trial]] = {}
        for trial in history.trials:
            if "bracket" in trial.note and trial.state != "rejected":
                opened.setdefault(int(trial.note["bracket"]), []).append(trial)
        room = has_room(history)
        for index, members in sorted(opened.items()):
            bracket = table[index % len(table)]
            if len(members) < bracket.size and room:
                continue
            for number, epochs in sorted(self.further(bracket, members, history).items()):
                if history.trials[number].state == "paused":
                    return Work(continues=number, epochs=epochs)
        if not room:
            return finish_best(history)
        index = next(at for at in count() if len(opened.get(at, ())) < table[at % len(table)].size)
        epochs = max(1, round(table[index % len(table)].budget))
        return Work(self.new_point(history), epochs=epochs, note={"bracket": index})

    def new_point(self, history: History) -> Point:
        """Return a point of the model of the most epochs that enough trials have reached; at random before."""
        table = brackets(history.max_epoch, self.eta)
        levels = {round(history.max_epoch / self.eta**power) or 1 for power in range(table[0].s + 1)}
        for epochs in sorted(levels, reverse=True):
            losses = [(each.point, loss_at(history, each, epochs)) for each in sound(history.trials)]
            observed = [(point, loss) for point, loss in losses if loss is not None]
            if self.model.is_enough(history.space, len(observed)):
                return self.model.sample(history.space, observed, history.rng())
        return history.space.sample(history.rng())


def halving(bracket: Bracket, members: Sequence[Trial], history: History, eta: int) -> Mapping[int, int]:
    """Return the trials that go to the next rung of successive halving: the best 1 / η of those at the rung, once all are there.

    A failed trial counts as the worst.
    """
    alive = sound(members)
    levels = rungs(bracket.budget, history.max_epoch, eta)
    for level, (epochs, following) in enumerate(zip(levels, levels[1:], strict=False)):
        losses = [(loss_at(history, each, epochs), each.number) for each in alive]
        known = sorted((loss, number) for loss, number in losses if loss is not None)
        if len(known) < len(alive):
            return {}
        keep = floor(len(members) / eta ** (level + 1) + 1e-9)
        best = {number for _, number in known[:keep]}
        alive = [each for each in alive if each.number in best]
        waiting = {each.number: following for each in alive if each.state == "paused" and each.budget < following}
        if waiting:
            return waiting
    return {}
