"""The base of all sections of a configuration: frozen, strict, no unknown keys, a docstring under each field."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator
from pydantic.fields import FieldInfo

from up.config.argument import Name
from up.config.wording import faults, mismatch, unknown
from up.errors import Problem, UserError
from up.types import Record

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """Base of all sections.

    ``gathers`` maps a field, which is a dict, to the pattern of the keys that it collects: YAML has ``teacher0: …,
    teacher1: …`` beside the fixed keys, the program one dict ``teachers``. A dump has the keys of YAML again.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )  # without use_attribute_docstrings, which parses the source of every section at each start: see ``document``
    gathers: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, data: object) -> object:
        """Drop nulls, and gather keys."""
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
    def _dump(self, handler: SerializerFunctionWrapHandler) -> Record:
        return self._spread(handler(self))

    @property
    def entries(self) -> Record:
        """The values by the keys of the file; sections and parts as objects."""
        return self._spread(dict(self))

    def _spread(self, plain: Record) -> Record:
        fields = type(self).model_fields
        plain = {fields[name].alias or name: value for name, value in plain.items()}
        for field in self.gathers:
            plain |= plain.pop(field, {})
        return plain

    @classmethod
    def gathered_in(cls, key: object) -> str | None:
        """Return the field that collects ``key``, or None for a key that is a field itself."""
        if not isinstance(key, str) or key in cls.model_fields:
            return None
        return next((field for field, pattern in cls.gathers.items() if re.fullmatch(pattern, key)), None)

    @classmethod
    def example_of(cls, field: str) -> str:
        """Return a key that ``field`` collects: ``teacher`` for ``teachers``, ``NAME`` where the keys may be any names."""
        beginning = cls.gathers[field].partition("\\")[0]
        return beginning if beginning.isidentifier() else "NAME"

    @classmethod
    def known_keys(cls) -> list[str]:
        """Return the keys that a file may use here."""
        gathered = {field: cls.example_of(field) for field in cls.gathers}
        return [gathered.get(name) or field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def misplaced(cls, key: str) -> str | None:
        """Return where a key belongs that is known but wrong here; None for an unknown key."""
        return None


class Part(Section):
    """A replaceable part: ``type`` names it in a table, ``kwargs`` are the arguments of its constructor."""

    type: Name
    """Name of the part; ``python -m up show components`` lists all."""
    kwargs: Record = {}
    """Arguments of the constructor, checked against its signature."""


def sections_in(annotation: object) -> Iterator[type[Section]]:
    """Yield the sections in an annotation: ``Part`` for ``list[Part] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def sections_below(section: type[Section]) -> list[type[Section]]:
    """List ``section`` and every section below it, each once."""
    found = [section]
    for each in found:  # grows while it is walked
        inner = [below for field in each.model_fields.values() for below in sections_in(field.annotation)]
        found += [below for below in dict.fromkeys(inner) if below not in found]
    return found


@cache
def docstrings_of(section: type[Section]) -> dict[str, str]:
    """Return the docstring under each field of a section."""
    found: dict[str, str] = {}
    for base in reversed([each for each in section.__mro__ if issubclass(each, Section)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for pair in zip(body.body, body.body[1:], strict=False):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


@cache
def document(root: type[Section]) -> None:
    """Give the fields of ``root`` and of all sections below it their docstrings as descriptions, for a JSON Schema."""
    for section in reversed(sections_below(root)):
        for name, field in section.model_fields.items():
            field.description = field.description or docstrings_of(section).get(name)
        section.model_rebuild(force=True)


def read_section(section: type[S], value: object, key: str) -> S:
    """Validate ``value`` as a ``section`` at ``key``. Raises ``UserError`` with all problems."""
    if isinstance(value, section):
        return value
    try:
        return section.model_validate(value)
    except ValidationError as error:
        problems = section_problems(section, error, value, key)
        raise UserError.of(replace(each, key=".".join(filter(None, [key, each.key]))) for each in problems) from error


def section_problems(root: type[Section], error: ValidationError, value: object, owner: str) -> Iterator[Problem]:
    """Translate what pydantic found wrong with the values or keys of a section that messages call ``owner``."""
    for found in faults(error, value):
        first = found.errors[0]
        model, field = section_at(root, first["loc"])
        key = str(first["loc"][-1]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            inside = found.path.rpartition(".")[0] or owner
            yield Problem(model.misplaced(key) or unknown(inside, key, model.known_keys()), key=found.path, about_key=True)
        elif first["type"] == "missing":
            path = found.path
            if key in model.gathers:  # the file has no such key, but several with similar names
                path = path.removesuffix(key) + model.example_of(key)
            yield Problem(f"is missing{_about(docstrings_of(model).get(key, '')) if field else ''}", key=path)
        else:
            yield mismatch(found.errors, found.path)


def _about(docstring: str) -> str:
    sentence = " ".join(docstring.split(". ")[0].replace("``", "`").rstrip(".").split())
    return f" ({sentence[:1].lower()}{sentence[1:]})" if sentence else ""


def section_at(root: type[Section], loc: Sequence[str | int]) -> tuple[type[Section], FieldInfo | None]:
    """Return the section below ``root`` that contains a location, and the field at its end (None for an unknown key)."""
    model = inner = root
    field: FieldInfo | None = None
    for word in loc:
        model = inner
        field = model.model_fields.get(str(word))
        if field is not None:
            inner = next(sections_in(field.annotation), inner)
    return model, field
