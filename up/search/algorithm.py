"""The interface of the algorithms of ``up search``: what they see and return, whether built in or of a plug-in.

A class of its own needs two methods, and is named in a module's ``TABLES`` under ``algorithm`` (docs/search.md):

    class Halton:
        def suggest(self, history: History) -> Point | None: ...
        def observe(self, trial: Trial) -> None: ...

An algorithm keeps no state outside the study: ``suggest`` is a function of the history, whose ``number`` and ``seed`` key its
random numbers (``History.rng``). So workers may be killed at any time, several hosts share one study, and one worker with
one seed repeats the search. ``observe`` is called for each trial that ended, in the order of their numbers after a restart.

The other members are optional: ``should_stop``, ``settings``, ``fragments`` and ``space`` (see ``Algorithm``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np

from up.search.space import Point, Space
from up.types import Json

State: TypeAlias = Literal["running", "paused", "complete", "pruned", "failed", "rejected"]
Direction: TypeAlias = Literal["maximize", "minimize"]
ENDED: Final = ("complete", "pruned", "failed", "rejected")


@dataclass(frozen=True)
class Trial:
    """A trial of a study, as it is stored.

    ``values`` are the objectives by epoch (the number of epochs done), in the order of the stage's ``objectives``, including those
    that do not change while training (``macs``). ``budget`` is the epoch at which the trial pauses or ends. ``parent`` is the
    trial whose weights it started from. ``note`` is what the algorithm gave with its ``Work``. A paused trial waits for a ``Work``
    that continues it. A rejected trial was never trained: its network is outside the constraints.
    """

    number: int
    point: Point
    state: State = "running"
    values: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    budget: int = 0
    parent: int | None = None
    note: Mapping[str, Json] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    """Measured before training: ``params``, ``macs``, ``latency_ms``, ``package_bytes``, those that the stage needs."""
    seconds: float = 0.0
    """Wall-clock time of training, all attempts together."""
    reason: str = ""
    """Why a trial failed or was rejected, with the path of its log."""

    @property
    def epoch(self) -> int:
        """Epochs with an evaluation so far."""
        return max(self.values, default=0)

    @property
    def final(self) -> tuple[float, ...] | None:
        """Objectives of the last evaluation; None before the first."""
        return self.values[self.epoch] if self.values else None

    @property
    def has_ended(self) -> bool:
        """Whether the trial will not run again."""
        return self.state in ENDED


@dataclass(frozen=True)
class History:
    """All trials of a stage by number, and what the stage says about the search."""

    trials: Sequence[Trial]
    space: Space
    directions: Sequence[Direction] = ("maximize",)
    seed: int = 0
    max_epoch: int = 1
    """Epochs of a full training; the schedule of every trial is that of this length."""
    limit: int = 0
    """``trials`` of the stage: how many may be complete or pruned."""

    @property
    def number(self) -> int:
        """Number of the next new trial."""
        return len(self.trials)

    @property
    def ended(self) -> list[Trial]:
        """Trials that are complete or pruned."""
        return [each for each in self.trials if each.state in ("complete", "pruned")]

    @property
    def complete(self) -> list[Trial]:
        """Trials that trained to the end."""
        return [each for each in self.trials if each.state == "complete"]

    @cached_property
    def best(self) -> Trial | None:
        """The complete trial with the best first objective, the earlier of two equal ones."""
        found = [each for each in self.complete if each.final is not None]
        return max(found, key=lambda each: (self.losses(each)[0] * -1, -each.number), default=None)

    def losses(self, trial: Trial) -> tuple[float, ...]:
        """Return the objectives of the last evaluation, with their sign such that smaller is better."""
        assert trial.final is not None
        return tuple(-value if way == "maximize" else value for value, way in zip(trial.final, self.directions, strict=True))

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return the random numbers of the next decision, keyed by the seed, the next number and ``purpose``."""
        return np.random.default_rng([self.seed, self.number, *purpose])


@dataclass(frozen=True)
class Work:
    """A decision: train ``point`` as a new trial, or continue the paused trial ``continues``, up to ``epochs``.

    ``epochs`` None is ``max_epoch``. A trial that reaches fewer epochs pauses; the learning rate follows the schedule of
    ``max_epoch`` in any case. ``inherits`` starts a new trial from the checkpoint of another one, at the epoch at which that one
    paused: weights, optimizer and epoch are taken over, the settings are those of ``point``. ``note`` is stored with the trial.
    """

    point: Point = field(default_factory=dict)
    epochs: int | None = None
    continues: int | None = None
    inherits: int | None = None
    note: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Wait:
    """The decision to start nothing before a running trial reports."""


WAIT: Final = Wait()
Suggestion: TypeAlias = "Point | Work | Wait | None"


class Algorithm(Protocol):
    """Choose the points of a search.

    Optional members, which the frame looks for:

    ``should_stop(trial, history) -> bool``: prune the running trial; asked after each evaluation but the last.
    ``settings(trial, history, config) -> Mapping[str, Json]``: values by dotted path that a trial trains with, instead of its
    point; ``config`` is the configuration without it, as plain data.
    ``fragments(history, config) -> Mapping[str, Json]``: further files of the finished stage by name, such as ``schedule.yaml``
    (values by dotted path) or ``lineage.csv`` (a list of rows).
    ``space() -> Mapping[str, Json]``: the space in its YAML form, for an algorithm that brings its own.
    ``finds_networks: bool``: a training finds networks by itself and writes them to ``fragments/`` in its folder, as ``best.yaml``
    and ``pareto/*.yaml``. Limits are those of these networks, not of the one that is trained.
    ``with_size(costs) -> Algorithm``: the algorithm with these costs as objectives beside the accuracy, where its trainings measure
    them by themselves. ``random_network(rng, config) -> Mapping[str, Json]``: values of a network drawn from the space that such a
    training searches, for the control row.
    ``max_epoch: int``: the length of its trials, where the stage gives none. ``one_objective: bool``: whether it takes only one.
    ``described(point) -> Mapping[str, Json]``: the point in fewer words, for messages and reports.
    ``sets_length: bool``: whether it alone decides the number of trials and their epochs, so that a stage gives neither.
    """

    def suggest(self, history: History) -> Suggestion:
        """Return the next decision: a point, ``Work``, ``WAIT``, or None if the search is over."""

    def observe(self, trial: Trial) -> None:
        """Receive a trial that ended."""
