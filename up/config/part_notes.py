"""Notes on parts: arguments and whole parts that are accepted although they change nothing, or not what their name says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from up.config.parts import Tables
from up.config.section import Part
from up.config.signature import signature_of


def notes_on_part(part: Part | Mapping[str, Any], table: str, tables: Tables, path: str) -> Iterator[tuple[str, str]]:
    """Path and text for each argument of a checked ``part`` that is ``NoEffect`` and not at its default, nested parts included.

    A part whose class has ``config_note``, a sentence, gets a note of its own.
    """
    part = part if isinstance(part, Part) else Part.model_validate(part)
    target = tables[table].get(part.type)
    note = getattr(target, "config_note", None)
    if note:
        yield f"{path}.type", f"{part.type}: {note}"
    parameters = signature_of(target).parameters
    for name, value in part.kwargs.items():
        parameter = parameters.get(name)
        if parameter is None or value is None:
            continue
        where = f"{path}.kwargs.{name}"
        if parameter.no_effect and value != parameter.default:
            yield where, f"{name} of {part.type} has no effect: {parameter.no_effect}"
        elif parameter.table is not None:
            many = isinstance(value, list | tuple)
            for index, item in enumerate(value if many else [value]):
                yield from notes_on_part(item, parameter.table, tables, f"{where}.{index}" if many else where)
