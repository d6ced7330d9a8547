"""Errors of pydantic as problems: what was got, what was expected, how to correct it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from up.errors import Problem
from up.text import Verbatim, did_you_mean, shown, some_of
from up.types import Json

_KINDS = {
    kind: noun
    for noun, kinds in {
        "a whole number": "int_type int_from_float int_parsing",
        "a number": "float_type float_parsing",
        "a finite number": "finite_number",
        "true or false": "bool_type bool_parsing",
        "text": "string_type",
        "a key that is text": "invalid_key",
        "text that is not empty": "string_too_short",
        "a list": "list_type tuple_type set_type sequence_type iterable_type sequence_str",
        "a block of keys": "dict_type mapping_type model_type model_attributes_type dataclass_type",
        "null": "none_required",
        "a path": "path_type",
        "no such key": "unexpected_keyword_argument",
    }.items()
    for kind in kinds.split()
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_PARTS = ("Part", "NetModule", "OptimizerPart", "SchedulePart")


class Mismatch(NamedTuple):
    """The errors about one value at a dotted path, one for each member of a union."""

    path: str
    errors: list[ErrorDetails]


def faults(error: ValidationError, value: object) -> Iterator[Mismatch]:
    """Group the errors of pydantic about ``value`` by path."""
    by_path: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for found in error.errors(include_url=False):
        by_path.setdefault(_path(found["loc"], value, found["type"]), []).append(found)
    for path, errors in by_path.items():
        deeper = any(other[: len(path)] == path and other != path for other in by_path)
        if not (deeper and isinstance(errors[0]["input"], dict | list)):  # else meant for the member that looked inside
            yield Mismatch(".".join(path), errors)


def _path(loc: Sequence[str | int], value: Json, kind: str) -> tuple[str, ...]:
    """The path in the file of what pydantic calls ``loc``, without names of gathering fields and of members of unions."""
    path: list[str] = []
    for at, word in enumerate(loc):
        is_in = word in value if isinstance(value, Mapping) else isinstance(word, int) and isinstance(value, list | tuple)
        if is_in and not (isinstance(word, int) and isinstance(value, list | tuple) and word >= len(value)):
            path.append(str(word))
            value = value[word]
        elif at == len(loc) - 1 and kind == "missing":
            path.append(str(word))
    return tuple(path)


def expected(error: ErrorDetails) -> str:
    """Return the expected value of one error of pydantic as a noun: ``a whole number``, ``at least 1``, ``one of a, b``."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind == "model_type" and context.get("class_name") in _PARTS:
        return "a block {type, kwargs}"
    if kind in _KINDS:
        return _KINDS[kind]
    if kind in ("literal_error", "enum"):
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return f"one of {choices}" if "," in choices else choices
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"{words} {f'{bound:g}' if isinstance(bound, int | float) and bound < 1e9 else bound}"
    if kind in ("too_short", "too_long"):
        count = context["min_length" if kind == "too_short" else "max_length"]
        return f"a list of at {'least' if kind == 'too_short' else 'most'} {count} {'entry' if count == 1 else 'entries'}"
    if kind == "missing":  # only as an entry of a list of fixed length
        return "one more entry"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]


def mismatch(errors: Sequence[ErrorDetails], key: str) -> Problem:
    """Return the problem behind the errors about one value."""
    value = errors[0]["input"]
    wanted = list(dict.fromkeys(expected(error) for error in errors))
    if len(wanted) > 1 and "a finite number" in wanted:
        wanted = [noun for noun in wanted if noun not in ("a whole number", "a number")]
    return Problem(got=Verbatim(shown(value)), expected=" or ".join(wanted), fix=_fix(value, errors), key=key)


def _fix(value: object, errors: Sequence[ErrorDetails]) -> str:
    kinds = {str(error["type"]) for error in errors}
    choices = [
        choice.strip(" '")
        for error in errors
        if error["type"] in ("literal_error", "enum")
        for choice in str(error["ctx"]["expected"]).replace(" or ", ", ").split(",")
    ]
    if isinstance(value, str):
        if "model_type" in kinds and errors[0].get("ctx", {}).get("class_name") == "Part":
            return f"Write {{type: {value}}}."
        if choices:
            return did_you_mean(value, choices).strip()
        if kinds & {"int_type", "float_type"} and _is_number(value):
            return "Remove the quotes."
        if "bool_type" in kinds and value.lower() in ("true", "false"):
            return "Remove the quotes."
        if kinds & {"list_type"} and "string_type" not in kinds:
            return f"Write [{value}]." if len(value) < 30 else ""
    elif "string_type" in kinds and isinstance(value, bool | int | float):
        return "Put it in quotes."
    return ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def unknown(owner: str, key: str, known: Sequence[str], noun: str = "key") -> str:
    """Describe an unknown key: ``LAMB takes no such argument. Did you mean 'betas'? (It takes lr, betas, eps)``."""
    takes = f"It takes {some_of(known, 12)}" if known else f"It takes no {noun}s"
    if noun == "key" and "kwargs" in known and not get_close_matches(key, known, cutoff=0.75):  # no typo: as others write it
        takes += f"; is it an argument? Then write kwargs: {{{key}: ...}}"
    return f"{owner} takes no such {noun}.{did_you_mean(key, known)} ({takes})"
