"""What a part takes, read from its constructor: the one source for checking, for the schema and for the reference page."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import json
import numbers
import pathlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, InstanceOf, Strict, create_model
from typing_extensions import is_typeddict

from up.config.part import BY_PROGRAM, NoEffect, PartOf

_PACKAGE = __name__.partition(".")[0]
_INSTANCE_OF: Any = InstanceOf
_EMPTY = inspect.Parameter.empty
_SCALARS: dict[Any, Any] = {
    bool: Annotated[bool, Strict()],
    int: Annotated[int, Strict()],
    float: Annotated[float, Strict(), AllowInfNan(False)],
    str: Annotated[str, Strict()],
    None: None,
    type(None): None,
}
_CONTAINERS = (list, tuple, set, frozenset, dict)
_ABSTRACT = (
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Mapping,
    collections.abc.Set,
)
_SEQUENCES = (list, tuple, *_ABSTRACT[:3])
_BARE: dict[Any, Any] = {  # as torchvision annotates, and what YAML can write of it
    numbers.Number: int | float,
    collections.abc.Sequence: list[Any],
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a part.

    ``table`` is set when the argument is itself a part, ``many`` when it may be a list of parts, ``no_effect`` (the reason)
    when it is only accepted.
    """

    name: str
    annotation: Any
    default: Any
    table: str | None = None
    single: bool = True
    many: bool = False
    no_effect: str = ""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is _EMPTY

    @property
    def takes_none(self) -> bool:
        """Whether null is a value of its own; otherwise null in YAML means that nothing was given."""
        return _takes_none(self.annotation)


@dataclass(frozen=True)
class Signature:
    """What a part takes; an ``open`` one has ``**kwargs`` and takes any name, an ``internal`` one comes from the program alone."""

    owner: str
    parameters: dict[str, Parameter]
    open: bool
    internal: frozenset[str] = frozenset()

    def takes(self, name: str) -> bool:
        """Whether there is such a parameter, for YAML or for the program."""
        return name in self.parameters or name in self.internal


@dataclass(frozen=True)
class Description:
    """A part in words: its purpose, and name, type and default of each argument."""

    summary: str
    parameters: tuple[tuple[str, str, str], ...]


@lru_cache(maxsize=1024)
def signature_of(target: Callable[..., Any]) -> Signature:
    """The arguments of a class or function that YAML can give: no ``self``, no positional-only ones, no ``params`` of an
    optimizer, which are the tensors it optimizes, nothing that is ``BY_PROGRAM``. ``**kwargs`` to a base class of this package
    stands for the arguments of that class."""
    hints = _hints(target)
    parameters: dict[str, Parameter] = {}
    internal = set()
    is_open = False
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            continue
        if parameter.name == "params" and parameter.default is _EMPTY:
            continue
        annotation = hints.get(parameter.name, _implied(parameter.default))
        if BY_PROGRAM in _extras(annotation):
            internal.add(parameter.name)
        else:
            parameters[parameter.name] = _parameter(parameter.name, annotation, parameter.default)
    base = _behind_kwargs(target) if is_open else None
    if base is None:
        return Signature(name_of(target), parameters, is_open, frozenset(internal))
    inherited = signature_of(base)
    parameters |= {name: parameter for name, parameter in inherited.parameters.items() if name not in parameters}
    return Signature(name_of(target), parameters, inherited.open, frozenset(internal) | inherited.internal)


def _behind_kwargs(target: Callable[..., Any]) -> type | None:
    """The class of this package whose constructor takes the ``**kwargs`` of ``target``'s."""
    own = [each for each in target.__mro__ if "__init__" in vars(each)] if isinstance(target, type) else []
    return own[1] if len(own) > 1 and own[1].__module__.partition(".")[0] == _PACKAGE else None


def _implied(default: Any) -> Any:
    """What an argument without annotation takes: numbers when its default has a point, otherwise anything."""
    return int | float if isinstance(default, float) else Any


def name_of(target: Callable[..., Any]) -> str:
    """What messages call a part: the name of its class or function."""
    inner = target.func if isinstance(target, partial) else target
    return str(getattr(inner, "__name__", type(inner).__name__))


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    inner = target.func if isinstance(target, partial) else target
    function: Any = getattr(inner, "__init__", inner) if isinstance(inner, type) else inner
    if not inspect.isroutine(function):
        function = type(inner).__call__
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees; the constructor checks itself then
        return {}


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    extras = _extras(annotation)
    part = next((extra for extra in extras if isinstance(extra, PartOf)), None)
    if part is None:
        reason = next((extra.reason for extra in extras if isinstance(extra, NoEffect)), "")
        return Parameter(name, annotation, default, no_effect=reason)
    members = [member for member in _members(annotation) if member is not type(None)]
    many = any((get_origin(member) or member) in _SEQUENCES for member in members)
    single = any((get_origin(member) or member) not in _SEQUENCES for member in members)
    return Parameter(name, annotation, default, part.table, single, many or Any in members)


def _extras(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        return [*extras, *_extras(inner)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [extra for member in get_args(annotation) for extra in _extras(member)]
    return []


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, ``Annotated`` taken off."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def _takes_none(annotation: Any) -> bool:
    return any(member in (None, type(None), Any, object) for member in _members(annotation))


class PartModel(BaseModel):
    """Base of the models that ``signature_model`` makes. Fields are called a0, a1, …, and the arguments are their aliases:
    an argument may be called ``copy`` or ``_x``, a field may not."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, protected_namespaces=(), extra="forbid")
    signature: ClassVar[Signature]

    def given(self) -> dict[str, Any]:
        """What was given, converted to the annotated types."""
        named = {field: info.alias for field, info in type(self).model_fields.items()}
        found = {str(named[field]): getattr(self, field) for field in named if field in self.model_fields_set}
        return {**found, **(self.model_extra or {})}


@lru_cache(maxsize=1024)
def signature_model(target: Callable[..., Any]) -> type[PartModel]:
    """The signature of ``target`` as a pydantic model: strict about numbers, text and bools, YAML's lists taken for tuples.

    Arguments that are parts take anything here; they are checked against their own table. None is required: the program may
    supply what the YAML leaves out.
    """
    signature = signature_of(target)
    fields: dict[str, Any] = {}
    for index, parameter in enumerate(signature.parameters.values()):
        annotation = Any if parameter.table else strict(parameter.annotation)
        default = None if parameter.required else parameter.default
        fields[f"a{index}"] = (annotation, Field(default, alias=parameter.name))
    model: type[PartModel] = create_model(signature.owner, __base__=_Open if signature.open else PartModel, **fields)
    model.signature = signature
    return model


class _Open(PartModel):
    model_config = ConfigDict(extra="allow")


def strict(annotation: Any) -> Any:
    """``annotation`` such that YAML's types are taken at their word: true is no number, 1 is no text, .inf no number."""
    if annotation in (Any, object):
        return Any
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if annotation in _BARE:
        return strict(_BARE[annotation])
    origin: Any = get_origin(annotation)
    if origin is Annotated:
        inner, *extras = get_args(annotation)
        return Annotated[(strict(inner), *extras)]
    if origin in (Union, types.UnionType):
        # where there are names to choose from, YAML has to use one: other text and numbers a library would take unchecked
        named = any(isinstance(member, type) and issubclass(member, enum.Enum) for member in get_args(annotation))
        alternatives = [member for member in get_args(annotation) if not (named and member in (int, str))]
        members = [strict(member) for member in alternatives if not _is_foreign(member)]
        return Union[tuple(members)] if members else Any  # noqa: UP007 (built at run time)
    if origin is Literal:
        return annotation
    if origin in (*_CONTAINERS, *_ABSTRACT):
        arguments = tuple(argument if argument is ... else strict(argument) for argument in get_args(annotation))
        return origin[arguments]
    if annotation in (*_CONTAINERS, *_ABSTRACT) or _is_plain_class(annotation):
        return annotation
    return _INSTANCE_OF[annotation] if isinstance(annotation, type) else Any


def _is_foreign(annotation: Any) -> bool:
    """Whether YAML cannot write it: a tensor, a module, a callable."""
    inner = get_origin(annotation) or annotation
    known = inner in _SCALARS or annotation in _BARE or annotation in (Any, object)
    if known or inner in (Annotated, Union, types.UnionType, Literal):
        return False
    if inner in (*_CONTAINERS, *_ABSTRACT) or isinstance(annotation, TypeVar):
        return False
    return not _is_plain_class(inner)


def _is_plain_class(annotation: Any) -> bool:
    if not isinstance(annotation, type):
        return False
    is_record = dataclasses.is_dataclass(annotation) or is_typeddict(annotation)
    return is_record or issubclass(annotation, enum.Enum | pathlib.PurePath | BaseModel)


_WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Any: "anything",
    None: "null",
    type(None): "null",
    list: "list",
    tuple: "list",
    dict: "block",
}


def type_text(annotation: Any) -> str:
    """An annotation in the words of YAML: ``whole number or list of whole numbers``, ``mean or sum``, ``loss part``."""
    part = next((extra for extra in _extras(annotation) if isinstance(extra, PartOf)), None)
    if part is not None:
        parameter = _parameter("", annotation, None)
        kinds = [f"{part.table} part"] * parameter.single + [f"list of {part.table} parts"] * parameter.many
        return " or ".join([*kinds, *(["null"] if _takes_none(annotation) else [])])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(member) for member in arguments))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple and ... not in arguments:
        return f"[{', '.join(map(type_text, arguments))}]"
    if origin in _SEQUENCES:
        return f"list of {_several(type_text(arguments[0]))}"
    return _WORDS.get(origin or annotation, str(getattr(annotation, "__name__", annotation)))


def _several(noun: str) -> str:
    """``whole numbers``; what has no plural stays as it is."""
    return f"{noun}s" if noun.endswith(("number", "part", "block")) else noun


def describe(target: Callable[..., Any]) -> Description:
    """``target`` in words, for ``show components`` and the reference page."""
    inner = target.func if isinstance(target, partial) else target
    text = inspect.cleandoc(inner.__doc__ or "")  # an inherited one would speak of the base class
    summary = text.split("\n\n")[0].replace("\n", " ")
    rows = []
    for parameter in signature_of(target).parameters.values():
        default = "required" if parameter.required else json.dumps(parameter.default, default=str, ensure_ascii=False)
        unused = f" (no effect: {parameter.no_effect})" if parameter.no_effect else ""
        rows.append((parameter.name, f"{type_text(parameter.annotation)}{unused}", default))
    return Description(summary, tuple(rows))
