"""Checks of the ranges and choices of annotations when a function or a constructor is called in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, wraps
from typing import Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from up.config.signature import strict
from up.config.wording import faults, mismatch
from up.errors import Problem, UserError

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function or an ``__init__`` so that it raises ``UserError`` for an argument outside its annotated range.

    Only annotations with a range or with choices (``Field``, ``Between``, ``Literal``) are checked: a part that is built from
    YAML was checked as a whole before.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checks_and_calls(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given: Mapping[str, object] = signature.bind(*args, **kwargs).arguments
        except TypeError:  # a programming error, which the call itself reports
            given = {}
        require_in_range(function, given)
        return function(*args, **kwargs)

    return checks_and_calls


def require_in_range(function: Callable[..., object], values: Mapping[str, object]) -> None:
    """Raise ``UserError`` when one of ``values``, arguments of ``function`` by name, is outside its annotated range."""
    problems = list(_out_of_range(function, values))
    if problems:
        raise UserError.of(problems)


def _out_of_range(function: Callable[..., object], values: Mapping[str, object]) -> Iterator[Problem]:
    for name, adapter in _ranges_of(function).items():
        if name not in values:
            continue
        try:
            adapter.validate_python(values[name])
        except ValidationError as error:
            for fault in faults(error, values[name]):
                yield mismatch(fault.errors, f"{name}.{fault.path}" if fault.path else name)


@lru_cache(maxsize=1024)
def _ranges_of(function: Callable[..., object]) -> dict[str, TypeAdapter[object]]:
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    return {name: TypeAdapter(strict(hint)) for name, hint in hints.items() if _has_range(hint)}


def _has_range(annotation: object) -> bool:
    if get_origin(annotation) is Literal or isinstance(annotation, FieldInfo | BaseMetadata):
        return True
    return any(_has_range(each) for each in get_args(annotation))
