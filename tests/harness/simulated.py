"""A simulated search: trials with learning curves, workers that report in their own time, and kills at random moments.

No process is started and nothing is trained. As the frame does, the simulation stores each trial, asks the algorithm with the
history alone, and lets a new worker continue the trial of a killed one from its last epoch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from up.search.algorithm import ENDED, Algorithm, History, Trial, Wait, Work
from up.search.space import Point, Space, key_of
from up.types import Json

Curve = Callable[[Point, float], float]
"""Weights after an epoch of a point, given those before; the simulation starts from 0."""


@dataclass
class Simulation:
    """A search of ``limit`` trials of ``max_epoch`` epochs, with ``workers`` at once; ``score`` turns weights into an accuracy."""

    algorithm: Algorithm
    space: Space
    train: Curve
    score: Callable[[Point, float], float] = lambda _, weights: weights
    max_epoch: int = 27
    limit: int = 0
    seed: int = 0
    workers: int = 1
    kills: int = 0
    goal: float = float("inf")
    rejected: float = 0.0
    """Share of the points that are outside the constraints: such a trial is stored, but never trained."""
    trials: list[Trial] = field(default_factory=list)
    weights: dict[int, dict[int, float]] = field(default_factory=dict)
    """Weights of each trial by epoch; those of epoch 0, or of the epoch at which it inherited, come first."""
    epochs: int = 0
    """Epochs trained in all trials together."""
    decisions: list[str] = field(default_factory=list)
    _events: list[tuple[float, int, int, int]] = field(default_factory=list)  # time, order, worker, trial
    _current: dict[int, int] = field(default_factory=dict)  # trial of each worker
    _interrupted: list[int] = field(default_factory=list)
    _order: int = 0
    _clock: float = 0.0

    @property
    def history(self) -> History:
        return History(tuple(self.trials), self.space, ("maximize",), self.seed, self.max_epoch, self.limit)

    def run(self, most: int = 10_000) -> Simulation:
        """Search until the algorithm ends it, or a full training reaches ``goal``."""
        chaos = np.random.default_rng([self.seed, 7])
        deaths = sorted(float(each) for each in chaos.random(self.kills) * 40)
        for _ in range(most):
            self._fill()
            if not self._events:
                assert self._idle
                return self
            self._clock, _, worker, number = heapq.heappop(self._events)
            if deaths and self._clock >= deaths[0]:
                deaths.pop(0)
                self._kill(int(chaos.integers(self.workers)))
            if self._current.get(worker) != number:
                continue  # the worker was killed in the epoch
            if self._epoch_done(number):
                self._schedule(worker, number)
                continue
            del self._current[worker]
            trial = self.trials[number]
            if trial.state == "complete" and trial.values[trial.epoch][0] >= self.goal:
                return self
        raise AssertionError("the search does not end")

    @property
    def _idle(self) -> list[int]:
        return [worker for worker in range(self.workers) if worker not in self._current]

    def _fill(self) -> None:
        """Let idle workers continue interrupted trials, or ask the algorithm."""
        for worker in self._idle:
            number = self._interrupted.pop(0) if self._interrupted else self._start()
            if number is None:
                return
            self._current[worker] = number
            self._schedule(worker, number)

    def _schedule(self, worker: int, number: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (self._clock + self._seconds(number), self._order, worker, number))

    def _kill(self, worker: int) -> None:
        """Kill a worker in the middle of an epoch, which is lost."""
        if worker in self._current:
            self._interrupted.append(self._current.pop(worker))
            self._events = [each for each in self._events if each[2] != worker]
            heapq.heapify(self._events)

    def _start(self) -> int | None:
        """Ask the algorithm; returns the trial to run, None to wait or at the end."""
        history = self.history
        suggestion = self.algorithm.suggest(history)
        if suggestion is None or isinstance(suggestion, Wait):
            return None
        work = suggestion if isinstance(suggestion, Work) else Work(suggestion)
        counted = [each for each in self.trials if each.state not in ("failed", "rejected")]
        if work.continues is None and self.limit and len(counted) >= self.limit:
            return None
        self.decisions.append(f"{key_of(work.point)} {work.epochs} {work.continues} {work.inherits} {sorted(work.note.items())}")
        budget = work.epochs or self.max_epoch
        if work.continues is not None:
            trial = self.trials[work.continues]
            assert trial.state == "paused"
            assert budget > trial.budget
            self.trials[trial.number] = replace(trial, state="running", budget=budget)
            return trial.number
        number = len(self.trials)
        assert self.space.is_valid(work.point)
        if np.random.default_rng([self.seed, number, 1]).random() < self.rejected:
            self.trials.append(Trial(number, work.point, "rejected", {}, budget, work.inherits, work.note))
            return self._start()
        self.trials.append(Trial(number, work.point, "running", {}, budget, work.inherits, work.note))
        self.weights[number] = {0: 0.0}
        if work.inherits is not None:
            donor = self.trials[work.inherits]
            assert donor.state in ("paused", *ENDED)
            self.weights[number] = {donor.epoch: self.weights[donor.number][donor.epoch]}
        return number

    def _epoch_done(self, number: int) -> bool:
        """Store an epoch; returns whether the trial goes on."""
        trial, weights = self.trials[number], self.weights[number]
        before = max(weights)
        weights[before + 1] = self.train(trial.point, weights[before])
        self.epochs += 1
        value = (self.score(trial.point, weights[before + 1]),)
        trial = replace(trial, values={**trial.values, before + 1: value})
        self.trials[number] = trial
        if trial.epoch < trial.budget:
            should_stop = getattr(self.algorithm, "should_stop", None)
            if should_stop is not None and should_stop(trial, self.history):
                self.trials[number] = replace(trial, state="pruned")
                return False
            return True
        self.trials[number] = replace(trial, state="complete" if trial.budget >= self.max_epoch else "paused")
        self.algorithm.observe(self.trials[number])
        return False

    def _seconds(self, number: int) -> float:
        """Seconds of an epoch: trials differ by a factor of up to two."""
        return 1.0 + float(np.random.default_rng([self.seed, number]).random())


def record(trials: list[Trial]) -> list[tuple[Json, ...]]:
    """All facts of a search."""
    return [(each.number, key_of(each.point), each.state, dict(each.values), each.parent, dict(each.note)) for each in trials]
