"""Search of backbones by mutation of Pareto-optimal ones, as Vega's BackboneNas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from up.config.argument import AtLeast1
from up.config.checked import checked
from up.search.algorithm import Algorithm, History, Suggestion
from up.search.algorithms.brackets import Share, has_room, wait_or_end
from up.search.pareto import pareto_front
from up.search.space import MAX_DRAWS, Dimension, Point, Space, Value, key_of


def edits(dimension: Dimension, value: Value) -> dict[str, list[Value]]:
    """Return the values that the edits ``insert``, ``remove`` and ``swap`` make of ``value``, within the dimension.

    Of a list or a text ``insert`` adds an element and ``remove`` drops one; of the switches of blocks, such as ``doublechannel``,
    they turn a 0 into a 1 and back. ``swap`` exchanges two elements, or another element takes the place of one. Of a number, such
    as the depth, ``insert`` is the next larger value and ``remove`` the next smaller. Of any other value ``swap`` is each other
    one.
    """
    values = dimension.values
    if values is None or all(_is_number(each) for each in values):
        return _steps(dimension, value)
    found: dict[str, list[Value]] = {"insert": [], "remove": [], "swap": []}
    for other in values:
        if other != value:
            kind = _edit(value, other) if isinstance(value, list | str) and isinstance(other, list | str) else "swap"
            if kind is not None:
                found[kind].append(other)
    return found


def _edit(value: Sequence[Value], other: Sequence[Value]) -> str | None:
    """Name the edit that makes ``other`` of ``value``; None if there is no single one."""
    if len(other) == len(value) + 1:
        return "insert" if any([*other[:at], *other[at + 1 :]] == [*value] for at in range(len(other))) else None
    if len(other) == len(value) - 1:
        return "remove" if _edit(other, value) == "insert" else None
    differ = [(old, new) for old, new in zip(value, other, strict=False) if old != new]
    if len(other) != len(value) or len(differ) > 2 or (len(differ) == 2 and differ[0] != differ[1][::-1]):
        return None
    old, new = differ[0]
    if len(differ) == 1 and _is_number(old) and _is_number(new):
        return "insert" if new > old else "remove"
    return "swap"


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(dimension: Dimension, value: Value) -> dict[str, list[Value]]:
    if dimension.count is None:  # a continuous range: a tenth of it
        share = dimension.share_of(value)
        more, less = dimension.at(min(share + 0.1, 1.0)), dimension.at(max(share - 0.1, 0.0))
        return {"insert": [more] if more != value else [], "remove": [less] if less != value else [], "swap": []}
    ordered = sorted(dimension.all_values())
    at = ordered.index(value)
    return {"insert": ordered[at + 1 : at + 2], "remove": ordered[max(at - 1, 0) : at], "swap": []}


def mutated(space: Space, point: Point, rng: np.random.Generator) -> Point:
    """Return ``point`` with one edit of one key; keys that become active are drawn. ``point`` itself where no key has an edit."""
    candidates = [(path, choices) for path in point for choices in edits(space[path], point[path]).values() if choices]
    if not candidates:
        return point
    path, choices = candidates[int(rng.integers(len(candidates)))]
    changed = {**point, path: choices[int(rng.integers(len(choices)))]}
    shares = [share if share is not None else float(rng.random()) for share in space.encode(changed)]
    return space.active({**space.decode(shares), **changed})


class BackboneNas(Algorithm):
    """Mutate the Pareto-optimal points of a space of networks, such as the depth, the width, and where channels double.

    A point is random while fewer than ``min_sample`` trials are complete, and later with probability ``random_ratio``; otherwise a
    Pareto-optimal trial is drawn and mutated once, again and again until the point is a new one, at most ``num_mutate`` times. No
    point is trained twice. The search ends when all points of the space have been.
    """

    @checked
    def __init__(self, *, random_ratio: Share = 0.2, num_mutate: AtLeast1 = 10, min_sample: AtLeast1 = 10) -> None:
        self.random_ratio, self.num_mutate, self.min_sample = random_ratio, num_mutate, min_sample

    def suggest(self, history: History) -> Suggestion:
        """Return a new point, a mutated or a random one."""
        if not has_room(history):
            return wait_or_end(history)
        seen = {key_of(each.point) for each in history.trials}
        rng = history.rng()
        parents = pareto_parents(history)
        if len(history.complete) >= self.min_sample and parents and rng.random() >= self.random_ratio:
            point = parents[int(rng.integers(len(parents)))]
            for _ in range(self.num_mutate):
                point = mutated(history.space, point, rng)
                if key_of(point) not in seen and history.space.is_valid(point):
                    return point
        return unseen(history.space, seen, rng) or wait_or_end(history)


def pareto_parents(history: History) -> list[Point]:
    """Return the points of the complete trials that no other dominates."""
    trials = [each for each in history.complete if each.final is not None]
    front = pareto_front([each.final or () for each in trials], history.directions)
    return [trials[at].point for at in front]


def unseen(space: Space, seen: set[str], rng: np.random.Generator) -> Point | None:
    """Draw a point that was not trained; None if the space has no other."""
    for _ in range(MAX_DRAWS):
        point = space.sample(rng)
        if key_of(point) not in seen:
            return point
    if any(each.count is None for each in space.dimensions):
        return None
    left = [point for point in space.grid() if key_of(point) not in seen]
    return left[int(rng.integers(len(left)))] if left else None
