"""Read the YAML form of a space, which the docstring of ``up/search/space.py`` shows."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from up.errors import Problem, UserError
from up.search.space import Dimension, Space, Value
from up.text import did_you_mean
from up.types import Json

_MOST_SWITCHES = 10_000
_KEYS = {
    "values": ("values", "when"),
    "range": ("range", "int", "step", "when"),
    "log": ("log", "int", "when"),
    "switches": ("switches", "ones", "when"),
}


def read_space(space: Mapping[str, Json], forbid: Sequence[Mapping[str, Json]] = (), key: str = "space") -> Space:
    """Read the YAML form (see the file's docstring). Raises ``UserError`` with all problems, whose keys begin with ``key``."""
    problems: list[Problem] = []
    read = [_dimension(path, spec, f"{key}.{path}", problems) for path, spec in space.items()]
    found = {each.path: each for each in read if each is not None}
    for each in found.values():
        problems += _unknown(each.when, space, f"{key}.{each.path}.when")
    beside = f"{key.rpartition('.')[0]}.forbid".lstrip(".")
    for number, combination in enumerate(forbid):
        problems += _unknown(combination, space, f"{beside}.{number}")
    ordered = _ordered(found, key, problems)
    for number, combination in enumerate(forbid):
        for path, value in combination.items():
            if path in found:
                problems += _not_held(found[path], _listed(value), f"{beside}.{number}.{path}")
    for each in found.values():
        for path, values in each.when.items():
            if path in found:
                problems += _not_held(found[path], values, f"{key}.{each.path}.when.{path}")
    if problems:
        raise UserError.of(problems)
    return Space(tuple(ordered), tuple({path: _listed(value) for path, value in each.items()} for each in forbid))


def _dimension(path: str, spec: Json, key: str, problems: list[Problem]) -> Dimension | None:
    """Read the values of one key; what is wrong with them is added to ``problems``."""
    if isinstance(spec, list):
        spec = {"values": spec}
    kinds = [name for name in _KEYS if isinstance(spec, Mapping) and name in spec]
    if not isinstance(spec, Mapping) or len(kinds) != 1:
        expected = "a list of values, {range: [low, high]}, {log: [low, high]} or {switches: N, ones: K}"
        problems.append(Problem(got=spec, expected=expected, key=key))
        return None
    kind = kinds[0]
    known = _KEYS[kind]
    for name in spec:
        if name not in known:
            fix = did_you_mean(str(name), known).strip() or f"Expected {', '.join(known)}."
            problems.append(Problem(f"unknown key {name!r}", key=f"{key}.{name}", about_key=True, fix=fix))
    when = spec.get("when") or {}
    if not isinstance(when, Mapping):
        problems.append(Problem(got=when, expected="a block {KEY: VALUE}", key=f"{key}.when"))
        when = {}
    conditions = {name: _listed(value) for name, value in when.items()}
    if kind == "values":
        return _choices(path, spec["values"], conditions, key, problems)
    if kind == "switches":
        return _switches(path, spec, conditions, key, problems)
    return _interval(path, kind, spec, conditions, key, problems)


def _choices(path: str, values: Json, when: Mapping[str, tuple[Value, ...]], key: str, problems: list[Problem]) -> Dimension | None:
    if not isinstance(values, list) or not values:
        problems.append(Problem(got=values, expected="a list with at least one value", key=key))
        return None
    texts = [json.dumps(value, sort_keys=True) for value in values]
    for text in {text for text in texts if texts.count(text) > 1}:
        problems.append(Problem(f"has the value {text} twice", key=key, fix="Remove one of them."))
    return Dimension(path, tuple(values), when=when)


def _switches(
    path: str, spec: Mapping[str, Json], when: Mapping[str, tuple[Value, ...]], key: str, problems: list[Problem]
) -> Dimension | None:
    """Read the lists of ``switches`` zeros and ones with ``ones`` ones, or from ``ones[0]`` to ``ones[1]``."""
    length: Json = spec["switches"]
    ones: Json = spec.get("ones")
    ends = ones if isinstance(ones, list) else [ones, ones]
    if not _is_count(length):
        problems.append(
            Problem(got=length, expected="the length of the lists, such as the number of blocks", key=f"{key}.switches")
        )
        return None
    if len(ends) != 2 or not all(map(_is_count, ends)) or not ends[0] <= ends[1] <= length:
        expected = f"how many of the {length} are 1: a number, or [least, most]"
        problems.append(Problem(got=ones, expected=expected, key=f"{key}.ones"))
        return None
    counts = range(ends[0], ends[1] + 1)
    number = sum(math.comb(length, each) for each in counts)
    if number > _MOST_SWITCHES:
        fix = "Choose fewer ones, or list the values."
        problems.append(Problem(f"{number} lists", expected=f"at most {_MOST_SWITCHES}", key=key, fix=fix))
        return None
    places = itertools.chain.from_iterable(itertools.combinations(range(length), each) for each in counts)
    return Dimension(path, tuple([int(at in chosen) for at in range(length)] for chosen in places), when=when)


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _interval(
    path: str, kind: str, spec: Mapping[str, Json], when: Mapping[str, tuple[Value, ...]], key: str, problems: list[Problem]
) -> Dimension | None:
    ends, step, integer = spec[kind], spec.get("step"), spec.get("int", False)
    is_pair = isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))
    if not is_pair or ends[0] >= ends[1]:
        problems.append(Problem(got=ends, expected="two numbers, the smaller first", key=f"{key}.{kind}"))
        return None
    if kind == "log" and ends[0] <= 0:
        problems.append(Problem(got=ends, expected="numbers above 0", key=f"{key}.log"))
        return None
    if not isinstance(integer, bool):
        problems.append(Problem(got=integer, expected="true or false", key=f"{key}.int"))
        return None
    if step is not None and (not _is_number(step) or not 0 < step <= ends[1] - ends[0]):
        problems.append(Problem(got=step, expected=f"a number above 0, at most {ends[1] - ends[0]:g}", key=f"{key}.step"))
        return None
    if integer and any(end != int(end) for end in (*ends, step or 0)):
        problems.append(Problem(got=ends, expected="integers, because of int: true", key=f"{key}.{kind}"))
        return None
    low, high = float(ends[0]), float(ends[1])
    if step is not None:
        high = float(f"{low + int((high - low) / step + 1e-9) * step:.12g}")  # the last number that steps reach
    return Dimension(path, None, low, high, kind == "log", integer, step, when)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(value: Json) -> tuple[Value, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _unknown(paths: Mapping[str, object], space: Mapping[str, Json], key: str) -> Iterator[Problem]:
    for path in paths:
        if path not in space:
            fix = did_you_mean(path, space).strip()
            yield Problem(f"{path!r} is not a key of the space", key=f"{key}.{path}", about_key=True, fix=fix)


def _not_held(dimension: Dimension, values: Sequence[Value], key: str) -> Iterator[Problem]:
    for value in values:
        if not dimension.holds(value):
            yield Problem(got=value, expected=f"a value of {dimension.path} in the space", key=key)


def _ordered(found: Mapping[str, Dimension], key: str, problems: list[Problem]) -> list[Dimension]:
    """Sort the keys so that each comes after those of its ``when``."""
    ordered: dict[str, Dimension] = {}
    left = dict(found)
    while left:
        ready = [path for path, each in left.items() if not (each.when.keys() & left.keys())]
        if not ready:
            circle = next(iter(left))
            problems.append(Problem("depends on itself through `when`", key=f"{key}.{circle}.when", fix="Remove a condition."))
            return list(ordered.values())
        ordered |= {path: left.pop(path) for path in ready[:1]}
    return list(ordered.values())
