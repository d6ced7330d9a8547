"""Annotations, defaults and docstrings of arguments in the words of YAML: for messages, ``show components`` and docs/config.md."""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from up.config.argument import Derived, Marker, PartOf, markers
from up.config.section import Part, Section
from up.config.signature import SEQUENCES, Parameter, Target

_SIMPLE: dict[object, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Any: "anything",
    None: "null",
    type(None): "null",
    **dict.fromkeys(SEQUENCES, "list"),
    dict: "block",
}
_SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


class Words:
    """Plain words; a subclass adds markup."""

    required = "required"

    def code(self, text: str) -> str:
        """Mark text that a file may hold."""
        return text

    def table(self, name: str) -> str:
        """Name a table of parts."""
        return name

    def section(self, section: type[Section]) -> str:
        """Name a section."""
        return "block"

    def of(self, annotation: object, metadata: Sequence[object] = ()) -> str:
        """Describe a type with its range: ``whole number ≥ 1 or list of whole numbers``, ``mean or sum``, ``loss part``."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self.of(arguments[0], [*arguments[1:], *metadata])
        if origin in (Union, types.UnionType):
            return " or ".join(dict.fromkeys(self.of(member, metadata) for member in arguments))
        part = next((each for each in metadata if isinstance(each, PartOf)), None)
        if isinstance(annotation, type) and issubclass(annotation, Section) and annotation is not Part:
            return self.section(annotation)
        if part is not None and annotation not in (None, type(None)):
            return self._part(annotation, self.table(part.table))
        if origin is Literal:
            return self._choices(arguments)
        if origin is tuple and ... not in arguments:
            return f"[{', '.join(map(self.of, arguments))}]"
        if origin is not None and arguments:
            inner = self.of(arguments[-1 if origin is dict else 0])
            of = "block of" if origin is dict else "list of"
            return f"{of} {_several(inner)}" if inner != "anything" else of.removesuffix(" of")
        return self._simple(annotation) + (_bounds(metadata) if annotation in (int, float) else "")

    def _part(self, annotation: object, table: str) -> str:
        argument = Parameter("", annotation, None)
        return " or ".join([f"{table} part"] * argument.single + [f"list of {table} parts"] * argument.many)

    def _simple(self, annotation: object) -> str:
        if annotation is Part:
            return "part"
        if is_typeddict(annotation):
            hints = get_type_hints(annotation, include_extras=True)
            return f"block of {', '.join(f'{self.code(key)} ({self.of(hint)})' for key, hint in hints.items())}"
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            return self._choices([each.value for each in annotation])
        return _SIMPLE.get(annotation, str(getattr(annotation, "__name__", annotation)))

    def _choices(self, values: Sequence[object]) -> str:
        *most, last = (self.code(_written(value)) for value in values)
        return f"{', '.join(most)} or {last}" if most else last

    def default(self, value: object) -> str:
        """Write a default as YAML does."""
        if value is None:
            return "null"
        if isinstance(value, Section) and type(value) is not Part:
            return "its defaults"
        return self.code(_written(value))

    def default_of(self, parameter: Parameter) -> str:
        """Write the default of an argument, or the origin of a derived one."""
        derived = parameter.marker(Derived)
        if derived is not None:
            return derived.note
        return self.required if parameter.required else self.default(parameter.default)

    def arguments(self, annotation: object, metadata: Sequence[object] = ()) -> str:
        """Describe a type with its range, and what its markers say, except the origin, which stands for the default."""
        found = (*metadata, *markers(annotation))
        notes = [each.note for each in found if isinstance(each, Marker) and each.note and not isinstance(each, Derived)]
        return "; ".join([self.of(annotation, metadata), *notes])

    def argument(self, parameter: Parameter) -> str:
        """Describe an argument on one line: ``alpha = 1 (number > 0; steps)``."""
        name, words, default = self.code(parameter.name), self.arguments(parameter.annotation), self.default_of(parameter)
        is_derived = parameter.marker(Derived) is not None
        return f"{name} ({words}; {default})" if is_derived or parameter.required else f"{name} = {default} ({words})"


def docstring(target: Target) -> str:
    """Return the docstring of a part, not that of a class that it derives from."""
    return inspect.cleandoc((target.func if isinstance(target, partial) else target).__doc__ or "")


def summary(target: Target) -> str:
    """Return the first paragraph of a part's docstring on one line."""
    return docstring(target).split("\n\n")[0].replace("\n", " ")


def description(target: Target) -> str:
    """Return a part's docstring without its sentences on errors; of a library's part the summary alone."""
    if not target.__module__.startswith("up."):
        return summary(target)
    paragraphs = [re.sub(r"(?s)(^|\s)(Raises |Errors: ).*", "", paragraph) for paragraph in docstring(target).split("\n\n")]
    return "\n\n".join(filter(None, paragraphs))


def _written(value: object) -> str:
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Section):
        return str(getattr(value, "type", ""))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "''" if value == "" else str(getattr(value, "value", value))


def _bounds(metadata: Iterable[object]) -> str:
    """`` ≥ 1, ≤ 3``."""
    flat = [each for extra in metadata for each in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    values = [(sign, getattr(each, kind.__name__.lower())) for each in flat for kind, sign in _SIGNS.items() if type(each) is kind]
    shown = [f"{sign} {'2^63' if value == 2**63 else f'{value:g}'}" for sign, value in values]
    return f" {', '.join(shown)}" if shown else ""


def _several(noun: str) -> str:
    """``whole numbers ≥ 1``; a noun without a plural stays as it is."""
    return re.sub(r"^(whole number|number|block|part)(?!s)\b(?! or)", r"\1s", noun)
