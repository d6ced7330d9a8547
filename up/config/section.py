"""What every section of a configuration shares: frozen, strict, no unknown keys, and a docstring under each field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections.

    ``gathers`` maps a field, which is a dict, to the pattern of the keys that are collected in it: the YAML says
    ``teacher0: …, teacher1: …`` side by side with the fixed keys, the program reads one dict ``teachers``. Dumping
    writes the keys side by side again.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
    gathers: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, data: Any) -> Any:
        """Null is unset; keys that belong together are gathered."""
        if not isinstance(data, dict):
            return data
        own = {key: value for key, value in data.items() if cls.gathered_in(key) is None}
        own = {key: value for key, value in own.items() if value is not None or key not in cls.model_fields}
        for field in cls.gathers:
            found = {key: value for key, value in data.items() if cls.gathered_in(key) == field and value is not None}
            if found and isinstance(own.get(field, {}), dict):
                own[field] = {**own.get(field, {}), **found}
        return own

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        for field in self.gathers:
            plain.update(plain.pop(field, {}))
        return plain

    @classmethod
    def gathered_in(cls, key: object) -> str | None:
        """The field that collects ``key``, or None when the key stands for itself."""
        if not isinstance(key, str) or key in cls.model_fields:
            return None
        return next((field for field, pattern in cls.gathers.items() if re.fullmatch(pattern, key)), None)

    @classmethod
    def example_of(cls, field: str) -> str:
        """A key that ``field`` collects: ``teacher`` for ``teachers``."""
        return cls.gathers[field].partition("\\")[0]

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys that a file may use here."""
        return [cls.example_of(field) if field in cls.gathers else field for field in cls.model_fields]

    @classmethod
    def misplaced(cls, key: str) -> str | None:
        """Where a key belongs that is known but cannot stand here in this file; None for a key that is not known."""
        return None


class Part(Section):
    """A replaceable part: ``type`` names it in the table of its kind, ``kwargs`` are its constructor's arguments."""

    type: Name
    """The name of the part; ``python -m up show components`` lists what there is."""
    kwargs: dict[str, Any] = {}
    """Arguments of the constructor, checked against its signature."""


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation mentions: ``Part`` for ``list[Part] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)
