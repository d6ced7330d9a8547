"""The values of a configuration one by one, defaults of parts included, and what the annotations say of a resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, get_args

from up.config.argument import Derived, FixedOnResume, FreeOnResume, PartOf
from up.config.parts import Tables
from up.config.section import Part, Section, sections_in
from up.config.signature import Parameter, signature_of

Markers = tuple[object, ...]


class Leaf(NamedTuple):
    """A value that holds no further block: whether it is fixed on resume, and whether a change is worth a line in the log."""

    value: object
    fixed: bool
    reported: bool


class _Kind(NamedTuple):
    """What a value is: its section, the table of a part, and the markers on the way to it."""

    section: type[Section] | None
    table: str
    passed: Markers

    @classmethod
    def of(cls, annotation: object, passed: Markers, own: Markers = ()) -> _Kind:
        """The kind of a value that is annotated so, or has the markers ``own``."""
        found = (*own, *_all_markers(annotation))
        table = next((each.table for each in found if isinstance(each, PartOf)), "")
        section = next(sections_in(annotation), Part if table else None)
        return cls(section, table, (*passed, *found))

    def leaf(self, value: object) -> Leaf:
        free = [each for each in self.passed if isinstance(each, FreeOnResume)]
        fixed = any(isinstance(each, FixedOnResume) for each in self.passed)
        return Leaf(list(value) if isinstance(value, tuple) else value, fixed and not free, all(each.reported for each in free))


def leaves(root: type[Section], plain: object, tables: Tables) -> dict[str, Leaf]:
    """By dotted path, the values of ``plain``, a ``root`` as it is dumped; lists count from 0.

    What the kwargs of a part leave out has the default of its signature, so that a repeated default makes no difference. An
    argument that is ``Derived`` is not there when it is left out: its value depends on the data.
    """
    return dict(_walk(plain, _Kind(root, "", ()), "", tables))


def _walk(value: object, kind: _Kind, path: str, tables: Tables) -> Iterator[tuple[str, Leaf]]:
    section, passed = kind.section, kind.passed
    start = f"{path}." if path else ""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _walk(item, kind, f"{start}{index}", tables)
    elif not isinstance(value, Mapping) or not value:
        yield path, kind.leaf(value)
    elif section is None:
        for key, inner in value.items():
            yield from _walk(inner, _Kind(None, "", passed), f"{start}{key}", tables)
    else:
        is_part = issubclass(section, Part)
        for key, inner in value.items():
            if key != "kwargs" or not is_part:
                field = section.model_fields.get(key if key in section.model_fields else section.gathered_in(key) or "")
                below = _Kind(None, "", passed) if field is None else _Kind.of(field.annotation, passed, tuple(field.metadata))
                yield from _walk(inner, below, f"{start}{key}", tables)
        parameters = _parameters(kind, value, tables)
        for name, inner in _with_defaults(value.get("kwargs"), parameters).items() if is_part else ():
            annotation = parameters[name].annotation if name in parameters else None
            yield from _walk(inner, _Kind.of(annotation, passed), f"{start}kwargs.{name}", tables)


def _parameters(kind: _Kind, part: Mapping[str, object], tables: Tables) -> Mapping[str, Parameter]:
    """The parameters of a part, found in its table, or in those that its section names; none for a part that is not there."""
    names = (kind.table,) if kind.table else kind.section.tables if kind.section and issubclass(kind.section, Part) else ()
    known = [tables[name] for name in names if name in tables and part.get("type") in tables[name]]
    return signature_of(known[0].get(str(part["type"]))).parameters if known else {}


def _with_defaults(kwargs: object, parameters: Mapping[str, Parameter]) -> dict[str, object]:
    given = kwargs if isinstance(kwargs, Mapping) else {}
    known = {name: each.default for name, each in parameters.items() if not each.required and each.marker(Derived) is None}
    set_ = {name: value for name, value in given.items() if value is not None or name not in known or parameters[name].takes_none}
    return {**known, **set_}


def _all_markers(annotation: object) -> Iterator[object]:
    """The markers of an annotation and of what it holds: those of the entries of a list."""
    yield from getattr(annotation, "__metadata__", ())
    for inner in get_args(annotation):
        yield from _all_markers(inner)
