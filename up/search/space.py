"""The space of a search: dotted paths of the configuration with their values, conditions and forbidden combinations.

    space:
      trainer.optimizer.type: [SGD, AdamW]                       one of a list
      trainer.optimizer.kwargs.lr: {log: [1e-4, 1.0]}            a number, uniform in its logarithm
      net.0.kwargs.width: {range: [16, 64], int: true, step: 8}  16, 24, … 64
      trainer.optimizer.kwargs.momentum: {range: [0.8, 0.99], when: {trainer.optimizer.type: SGD}}
      net.0.kwargs.doublechannel: {switches: 8, ones: [2, 3]}    lists of eight zeros and ones, two or three of them ones
      trainer.optimizer.kwargs.amsgrad: {values: [true, false], when: {trainer.optimizer.type: [Adam, AdamW]}}
    forbid: [{trainer.optimizer.type: AdamW, net.0.kwargs.width: 64}]

Values of the searched keys may be anything that YAML writes, blocks and lists included.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from up.errors import UserError
from up.types import Json

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial as OptunaTrial

Value: TypeAlias = Json
Point: TypeAlias = Mapping[str, Value]
"""Values of the active keys of a space, by dotted path."""

MAX_DRAWS = 1000


@dataclass(frozen=True)
class Dimension:
    """A key of a space: one of ``values``, or a number from ``low`` to ``high``, both included.

    ``step`` is the distance between two numbers (None: any number), ``log`` makes draws uniform in the logarithm. The key is active
    if each key of ``when`` is active and has one of the values there.
    """

    path: str
    values: tuple[Value, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    integer: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        """Number of values; None if it is a continuous range."""
        if self.values is not None:
            return len(self.values)
        step = self.step or (1 if self.integer else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    def at(self, share: float) -> Value:
        """Return the value at ``share``, 0 to 1, of the dimension: ``share`` drawn uniformly draws a value."""
        if self.values is not None:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        count = self.count
        if count is not None and not self.log:
            return self._number(self.low + min(int(share * count), count - 1) * (self.step or 1))
        half = 0.5 if self.integer else 0.0  # the ends of an integer range get as much room as the others
        low, high = self.low - half, self.high + half
        drawn = math.exp(math.log(low) + share * (math.log(high) - math.log(low))) if self.log else low + share * (high - low)
        return self._number(min(max(drawn, self.low), self.high))

    def share_of(self, value: Value) -> float:
        """Return the place of ``value``, 0 to 1, the middle of its part of the dimension: the inverse of ``at``."""
        if self.values is not None:
            return (self.values.index(value) + 0.5) / len(self.values)
        count, number = self.count, float(value)
        if count is not None and not self.log:
            return (round((number - self.low) / (self.step or 1)) + 0.5) / count
        half = 0.5 if self.integer else 0.0
        low, high = self.low - half, self.high + half
        if self.log:
            return (math.log(number) - math.log(low)) / (math.log(high) - math.log(low))
        return (number - low) / (high - low)

    def holds(self, value: Value) -> bool:
        """Check whether ``value`` is in the dimension."""
        if self.values is not None:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.integer and value != int(value):
            return False
        return self.step is None or abs((value - self.low) / self.step - round((value - self.low) / self.step)) < 1e-6

    def all_values(self) -> list[Value]:
        """List the values. Raises ``UserError`` for a continuous range."""
        if self.values is not None:
            return list(self.values)
        count = self.count
        if count is None:
            raise UserError("is a continuous range", expected="a list, or a range with a step", key=self.path)
        return [self._number(self.low + at * (self.step or 1)) for at in range(count)]

    def distribution(self) -> BaseDistribution:
        """Return the distribution of Optuna, in which values other than scalars are JSON texts."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values is not None:
            return CategoricalDistribution([_scalar(value) for value in self.values])
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def _number(self, number: float) -> int | float:
        return round(number) if self.integer else float(f"{number:.12g}")


@dataclass(frozen=True)
class Space:
    """All keys of a search, those that others depend on first."""

    dimensions: tuple[Dimension, ...]
    forbid: tuple[Mapping[str, tuple[Value, ...]], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Dotted paths of all keys."""
        return tuple(each.path for each in self.dimensions)

    @cached_property
    def _by_path(self) -> dict[str, Dimension]:
        return {each.path: each for each in self.dimensions}

    def __getitem__(self, path: str) -> Dimension:
        return self._by_path[path]

    def __len__(self) -> int:
        return len(self.dimensions)

    def is_active(self, dimension: Dimension, values: Point) -> bool:
        """Check whether the conditions of a key hold; ``values`` has the active keys before it."""
        return all(path in values and values[path] in allowed for path, allowed in dimension.when.items())

    def active(self, values: Point) -> Point:
        """Return ``values`` without the keys whose conditions do not hold."""
        kept: dict[str, Value] = {}
        for dimension in self.dimensions:
            if dimension.path in values and self.is_active(dimension, kept):
                kept[dimension.path] = values[dimension.path]
        return kept

    def is_forbidden(self, point: Point) -> bool:
        """Check whether ``point`` has one of the forbidden combinations."""
        return any(all(path in point and point[path] in values for path, values in each.items()) for each in self.forbid)

    def is_valid(self, point: Point) -> bool:
        """Check whether ``point`` has a value for each active key and no other, and no forbidden combination."""
        expected = [each for each in self.dimensions if self.is_active(each, point)]
        has_keys = {each.path for each in expected} == set(point)
        return has_keys and all(each.holds(point[each.path]) for each in expected) and not self.is_forbidden(point)

    def sample(self, rng: np.random.Generator) -> Point:
        """Draw a point uniformly among the valid ones. Raises ``UserError`` if ``forbid`` excludes (almost) all."""
        for _ in range(MAX_DRAWS):
            point = self.decode([float(share) for share in rng.random(len(self.dimensions))])
            if not self.is_forbidden(point):
                return point
        raise UserError(f"excludes all of {MAX_DRAWS} random points of the space", key="forbid", fix="Remove combinations.")

    def resample(self, point: Point, path: str, rng: np.random.Generator) -> Point:
        """Return ``point`` with another draw of the key at ``path``; keys that become active are drawn too. It may be forbidden."""
        values = {**point, path: self[path].at(float(rng.random()))}
        kept: dict[str, Value] = {}
        for each in self.dimensions:
            if self.is_active(each, kept):
                share = float(rng.random())
                kept[each.path] = values[each.path] if each.path in values else each.at(share)
        return kept

    def encode(self, point: Point) -> list[float | None]:
        """Return the place of each key, 0 to 1, in the order of ``names``; None for a key that is not active."""
        return [each.share_of(point[each.path]) if each.path in point else None for each in self.dimensions]

    def decode(self, shares: Sequence[float]) -> Point:
        """Return the point at ``shares``, 0 to 1, one for each of ``names``; keys that are not active are left out."""
        point: dict[str, Value] = {}
        for dimension, share in zip(self.dimensions, shares, strict=True):
            if self.is_active(dimension, point):
                point[dimension.path] = dimension.at(share)
        return point

    def grid(self) -> Iterator[Point]:
        """Yield all valid points in the order of the values, the last key fastest. Raises ``UserError`` for a continuous range."""
        seen: set[str] = set()
        for values in itertools.product(*(each.all_values() for each in self.dimensions)):
            point = self.active(dict(zip(self.names, values, strict=True)))
            text = key_of(point)
            if text not in seen and not self.is_forbidden(point):
                seen.add(text)
                yield point

    def ask(self, trial: OptunaTrial) -> Point:
        """Let a trial of Optuna suggest the active keys, each after those that it depends on."""
        point: dict[str, Value] = {}
        for each in self.dimensions:
            if self.is_active(each, point):
                point[each.path] = self._asked(each, trial)
        return point

    def _asked(self, dimension: Dimension, trial: OptunaTrial) -> Value:
        name = dimension.path
        if dimension.values is not None:
            chosen = trial.suggest_categorical(name, [_scalar(value) for value in dimension.values])
            return next(value for value in dimension.values if _is_same(_scalar(value), chosen))
        if dimension.integer:
            return trial.suggest_int(
                name, int(dimension.low), int(dimension.high), step=int(dimension.step or 1), log=dimension.log
            )
        return trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)

    def to_optuna(self, point: Point) -> dict[str, Value]:
        """Return the parameters of Optuna for ``point``."""
        return {name: _scalar(value) if self[name].values is not None else value for name, value in point.items()}


def key_of(point: Point) -> str:
    """Return a text that is equal for equal points."""
    return json.dumps(point, sort_keys=True)


def _scalar(value: Value) -> Value:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def _is_same(left: Value, right: Value) -> bool:
    """Compare two scalars; ``True`` is not 1, as it is to Python."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
