"""The arguments of a part, read from its constructor, for checking, the JSON Schema and the reference page."""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import enum
import inspect
import numbers
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, InstanceOf, Strict, create_model
from typing_extensions import is_typeddict

from up.config.argument import FromProgram, M, Marker, NoEffect, PartOf, PathTo, marker, markers
from up.types import Record

_INSTANCE_OF: Any = InstanceOf
Target: TypeAlias = Callable[..., Any]  # a class or a function that makes a part
_EMPTY = inspect.Parameter.empty
_SCALARS: dict[object, object] = {
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
SEQUENCES = (list, tuple, *_ABSTRACT[:3])
_BARE: dict[object, object] = {  # as torchvision annotates, and what YAML can write of it
    numbers.Number: int | float,
    collections.abc.Sequence: list[Any],
}


@dataclass(frozen=True)
class Parameter:
    """An argument of a part: its annotation with the markers of ``up.config.argument``, and its default."""

    name: str
    annotation: object
    default: Any

    def marker(self, kind: type[M]) -> M | None:
        """Return the marker of one kind, or None."""
        return marker(self.annotation, kind)

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is _EMPTY

    @cached_property
    def table(self) -> str | None:
        """The table of an argument that is itself a part."""
        part = self.marker(PartOf)
        return part.table if part is not None else None

    @cached_property
    def many(self) -> bool:
        """Whether an argument that is a part may be a list of parts."""
        members = _members(self.annotation)
        return Any in members or any((get_origin(member) or member) in SEQUENCES for member in members)

    @cached_property
    def single(self) -> bool:
        """Whether an argument that is a part may be one block."""
        members = [member for member in _members(self.annotation) if member is not type(None)]
        return any((get_origin(member) or member) not in SEQUENCES for member in members)

    @property
    def is_path(self) -> bool:
        """Whether text names a file or folder that must exist."""
        return Path in _members(self.annotation) or self.marker(PathTo) is not None

    @property
    def is_path_list(self) -> bool:
        """Whether the texts of a list do."""
        lists = [member for member in _members(self.annotation) if get_origin(member) in SEQUENCES]
        return any(Parameter("", item, None).is_path for member in lists for item in get_args(member))

    @property
    def takes_none(self) -> bool:
        """Whether null is a value of its own; otherwise null in YAML means that nothing was given."""
        return any(member in (None, type(None), Any, object) for member in _members(self.annotation))


@dataclass(frozen=True)
class Signature:
    """The arguments of a part. An ``open`` signature has ``**kwargs`` and takes any name; ``internal`` names are the program's."""

    owner: str
    parameters: dict[str, Parameter]
    open: bool
    internal: frozenset[str] = frozenset()

    def takes(self, name: str) -> bool:
        """Whether there is such an argument, for YAML or for the program."""
        return name in self.parameters or name in self.internal


@lru_cache(maxsize=1024)
def signature_of(target: Target) -> Signature:
    """Read the arguments of a class or function that YAML can give: no ``self``, no positional-only ones, no ``params`` of an
    optimizer, which are its tensors, and none that are ``FromProgram``.

    ``**kwargs`` stands for the arguments of the base class, or the function of the same module, that it is passed on to. An
    argument without markers has those that a base class gives it.
    """
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
        if not any(isinstance(each, Marker) for each in markers(annotation)):
            annotation = _with_inherited_markers(annotation, target, parameter.name)
        if marker(annotation, FromProgram) is not None:
            internal.add(parameter.name)
        else:
            parameters[parameter.name] = Parameter(parameter.name, annotation, parameter.default)
    passed = _passed_on(target) if is_open else None
    if passed is not None:
        base, taken = passed
        inherited = signature_of(base)
        own = {*parameters, *internal, *taken}
        parameters |= {name: parameter for name, parameter in inherited.parameters.items() if name not in own}
        internal |= inherited.internal - own
        is_open = inherited.open
    return Signature(name_of(target), parameters, is_open, frozenset(internal))


def _constructors(target: Target) -> list[type]:
    """The classes of the MRO with their own constructor in Python."""
    mro = target.__mro__ if isinstance(target, type) else ()
    return [each for each in mro if inspect.isfunction(inspect.unwrap(vars(each).get("__init__", len)))]


def _with_inherited_markers(annotation: object, target: Target, name: str) -> object:
    for base in _constructors(target)[1:]:
        found = _hints(base).get(name)
        inherited = [each for each in markers(found) if isinstance(each, Marker) and not isinstance(each, NoEffect)]
        if inherited:
            return Annotated[(annotation, *inherited)]
    return annotation


def _passed_on(target: Target) -> tuple[Target, set[str]] | None:
    """The base class, or the function, that gets the ``**kwargs`` of ``target``, and the arguments given beside them; None where
    ``target`` keeps its ``**kwargs``, or where this cannot be known."""
    classes = _constructors(target)
    own = inspect.unwrap(vars(classes[0])["__init__"] if classes else target)
    if not inspect.isfunction(own) or len(classes) == 1:
        return None
    kwargs = next(each.name for each in inspect.signature(own).parameters.values() if each.kind is each.VAR_KEYWORD)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
    except (OSError, SyntaxError):  # no source, as of classes made at run time
        return None
    followed: dict[str, Target] = {"super().__init__": classes[1]} if classes else own.__globals__
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and called in followed:
            named = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if named.get(None) == kwargs:
                receiver = inspect.unwrap(vars(classes[1])["__init__"]) if classes else followed[called]
                positional = list(inspect.signature(receiver).parameters)[bool(classes) :][: len(node.args)]
                return followed[called], {*positional, *(name for name in named if name is not None)}
    return None


def _implied(default: object) -> object:
    """The type of an argument without annotation: number if the default is a float, otherwise anything."""
    return int | float if isinstance(default, float) else Any


def name_of(target: Target) -> str:
    """Return the name of a part in messages, that of its class or function."""
    inner = target.func if isinstance(target, partial) else target
    return str(getattr(inner, "__name__", type(inner).__name__))


def _hints(target: Target) -> Record:
    inner = target.func if isinstance(target, partial) else target
    function: Any = getattr(inner, "__init__", inner) if isinstance(inner, type) else inner
    if not inspect.isroutine(function):
        function = type(inner).__call__
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees; the constructor checks itself then
        return {}


def _members(annotation: object) -> list[object]:
    """The members of a union, without ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


class PartModel(BaseModel):
    """Base of the models that ``signature_model`` makes. Fields are called a0, a1, …, and the arguments are their aliases:
    an argument may be called ``copy`` or ``_x``, a field may not."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, protected_namespaces=(), extra="forbid")
    signature: ClassVar[Signature]

    def given(self) -> Record:
        """Return the given values, converted to the annotated types."""
        named = {field: info.alias for field, info in type(self).model_fields.items()}
        found = {str(named[field]): getattr(self, field) for field in named if field in self.model_fields_set}
        return {**found, **(self.model_extra or {})}


@lru_cache(maxsize=1024)
def signature_model(target: Target) -> type[PartModel]:
    """Convert the signature of ``target`` to a pydantic model: strict about numbers, text and bools; lists of YAML become tuples.

    Arguments that are parts take anything here; they are checked against their own table. No argument is required:
    the program may supply what YAML leaves out.
    """
    signature = signature_of(target)
    fields: Record = {}
    for index, parameter in enumerate(signature.parameters.values()):
        annotation = Any if parameter.table else strict(parameter.annotation)
        default = None if parameter.required else parameter.default
        fields[f"a{index}"] = (annotation, Field(default, alias=parameter.name))
    model: type[PartModel] = create_model(signature.owner, __base__=_Open if signature.open else PartModel, **fields)
    model.signature = signature
    return model


class _Open(PartModel):
    model_config = ConfigDict(extra="allow")


def strict(annotation: object) -> Any:
    """Make ``annotation`` strict about the types of YAML: true is not a number, 1 is not text, .inf is not a number."""
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


def _is_foreign(annotation: object) -> bool:
    """Whether YAML cannot express it: a tensor, a module, a callable."""
    inner = get_origin(annotation) or annotation
    known = inner in _SCALARS or annotation in _BARE or annotation in (Any, object)
    if known or inner in (Annotated, Union, types.UnionType, Literal):
        return False
    if inner in (*_CONTAINERS, *_ABSTRACT) or isinstance(annotation, TypeVar):
        return False
    return not _is_plain_class(inner)


def _is_plain_class(annotation: object) -> bool:
    if not isinstance(annotation, type):
        return False
    is_record = dataclasses.is_dataclass(annotation) or is_typeddict(annotation)
    return is_record or issubclass(annotation, enum.Enum | PurePath | BaseModel)
