"""Markers of arguments in annotations: ranges, origin, units, tables of parts, comparison on resume.

    width: Annotated[int, Field(ge=1)]
    ratio: Annotated[float, Between(0, 1)]
    loss: Annotated[nn.Module, PartOf("loss")]
    num_classes: Annotated[int, Derived("the classes of dataset.train")]

The check of the YAML, the JSON Schema, the reference page, ``show components``, derived arguments and the comparison at a
resume are all read from here. The markers work for arguments of parts and for fields of sections alike.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar, Union, get_args, get_origin

from pydantic import Field, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from up.types import Record

PART = "x-part"
"""The key by which a JSON Schema names the table of a part until the tables are known."""

M = TypeVar("M", bound="Marker")


@dataclass(frozen=True)
class Marker:
    """Base of all markers."""

    @property
    def note(self) -> str:
        """The marker in the words of the reference page and ``show components``; may be empty."""
        return ""

    def json_schema(self) -> Record:
        """Return what the marker adds to the JSON Schema of its argument besides the note."""
        return {}

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> Record:
        """Extend the schema, for pydantic."""
        schema = {**handler(core_schema), **self.json_schema()}
        note = f"{self.note[:1].upper()}{self.note[1:]}." if self.note else ""
        description = " ".join(filter(None, [schema.get("description"), note]))
        return {**schema, **({"description": description} if description else {})}


@dataclass(frozen=True)
class PartOf(Marker):
    """A part: the YAML writes ``{type, kwargs}`` (or a list of such), the constructor receives the object.

    ``type`` is looked up in the ``table``, and in ``others`` where modules of several kinds may stand, as in ``net``.
    """

    table: str
    others: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """All tables, in the order in which a type is looked up."""
        return (self.table, *self.others)

    def json_schema(self) -> Record:
        """Name the table, if there is only one."""
        return {} if self.others else {PART: self.table}


@dataclass(frozen=True)
class PathTo(Marker):
    """Text that names a file or a folder, which must exist: ``PathTo("meta file")``. An annotation ``Path`` means the same."""

    what: str


@dataclass(frozen=True)
class Derived(Marker):
    """An argument that the program derives if YAML leaves it out: ``Derived("the classes of dataset.train")``."""

    source: str

    @property
    def note(self) -> str:
        return f"derived from {self.source}"


@dataclass(frozen=True)
class FromProgram(Marker):
    """An argument that the program alone gives (the number of images, the seed): YAML must not, and no page lists it."""


@dataclass(frozen=True)
class FixedOnResume(Marker):
    """A value that a run cannot resume under if it changed: the saved state would belong to another model or order of images."""

    @property
    def note(self) -> str:
        return "fixed on resume"


@dataclass(frozen=True)
class FreeOnResume(Marker):
    """A value that may change on resume although it is inside something ``FixedOnResume``; ``reported`` logs the change."""

    reported: bool = True

    @property
    def note(self) -> str:
        return "may change on resume" if self.reported else ""


@dataclass(frozen=True)
class NoEffect(Marker):
    """An argument of other programs' files that is accepted and changes nothing, for ``reason``.

    A value other than the default gives a note with the reason.
    """

    reason: str

    @property
    def note(self) -> str:
        return f"no effect: {self.reason}"

    def json_schema(self) -> Record:
        """Mark the key as deprecated; editors strike it through."""
        return {"deprecated": True}


@dataclass(frozen=True)
class Unit(Marker):
    """The unit of a number: ``Unit("epochs")``."""

    name: str

    @property
    def note(self) -> str:
        return self.name


def Between(low: float, high: float) -> FieldInfo:  # noqa: N802 - a marker, as Field is
    """Limit a number to ``low`` to ``high``, both included."""
    field: FieldInfo = Field(ge=low, le=high)
    return field


LARGEST_LR = 1e30
"""Largest learning rate of an optimizer: that of a step, which a schedule and the batch size scale, must fit into float32."""

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Between(0, 1)]
Name = Annotated[str, Field(min_length=1)]


def markers(annotation: object) -> Iterator[object]:
    """Yield the extras of an ``Annotated[…]``, those of the members of a union included."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        yield from (*extras, *markers(inner))
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from markers(member)


def marker(annotation: object, kind: type[M]) -> M | None:
    """Return the marker of one kind, or None."""
    return next((each for each in markers(annotation) if isinstance(each, kind)), None)
