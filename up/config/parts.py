"""Parts from ``{type, kwargs}``: everything that is wrong with them first, then the objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias

from pydantic import ValidationError

from up.config.argument import Derived
from up.config.plugins import signature_problem
from up.config.section import Part, read_section
from up.config.signature import Parameter, Signature, Target, name_of, signature_model, signature_of
from up.config.wording import faults, mismatch, unknown
from up.config.words import Words
from up.errors import ConfigError, Problem, UserError
from up.registry import Registry
from up.text import Verbatim, shown
from up.types import Json, Kwargs, Record

Tables: TypeAlias = "Mapping[str, Registry]"
DerivedArguments: TypeAlias = "Mapping[str, object]"  # the derived arguments by name, some of them Exact

_LIBRARIES = ("torch", "torchvision", "timm")  # loosely annotated: their constructors raise TypeError for a wrong value


@dataclass(frozen=True)
class Exact:
    """A derived value that the YAML may repeat but not contradict, and its source: ``Exact(10, "the classes of the data set")``."""

    value: object
    source: str


def check_part(
    part: Part | Kwargs, table: str, tables: Tables, path: str = "", derived: DerivedArguments | None = None
) -> list[Problem]:
    """Find all that is wrong with ``part`` and the parts in it: unknown types and arguments, wrong values, missing arguments.

    ``derived`` are the derived arguments, None where they are not known yet: what is ``Derived`` may be missing then. An ``Exact``
    one may not be contradicted.
    """
    try:
        part, target = _resolved(part, table, tables, path)
    except ConfigError as error:
        return list(error.problems)
    beside = {_join(path, f"kwargs.{key}"): key for key in type(part).model_fields}
    return [
        replace(problem, what="is in kwargs, expected beside kwargs", fix=f"Move {beside[problem.key]} one level up.")
        if problem.about_key and problem.key in beside
        else problem
        for problem in check_kwargs(target, part.kwargs, tables, _join(path, "kwargs"), derived, part.type, tables[table])
    ]


def check_kwargs(
    target: Target,
    kwargs: Kwargs,
    tables: Tables,
    path: str = "",
    derived: DerivedArguments | None = None,
    owner: str = "",
    table: Registry | None = None,
) -> list[Problem]:
    """Find all that is wrong with ``kwargs`` as arguments of ``target``, a part of ``table`` that messages call ``owner``."""
    signature = signature_of(target)
    owner = owner or signature.owner
    given = _given(signature, kwargs)
    problems = []
    for name in kwargs:
        if name in signature.internal:
            what = f"cannot be set: the program passes {name} to {owner}"
            problems.append(Problem(what, key=_join(path, name), fix="Remove it.", about_key=True))
        elif name not in signature.parameters and not signature.open:
            what = unknown(owner, name, list(signature.parameters), "argument")
            problems.append(Problem(what, key=_join(path, name), about_key=True))
    for name, parameter in signature.parameters.items():
        where = _join(path, name)
        if name not in given:
            if parameter.required and not _will_be_derived(parameter, derived, table):
                problems.append(Problem(f"is missing ({owner} needs it: {Words().of(parameter.annotation)})", key=where))
        elif parameter.table is not None:
            problems += _check_nested(given[name], parameter, tables, where, derived)
    problems += _wrong_values(target, signature, given, path)
    return problems + list(_contradictions(given, derived or {}, path))


def _will_be_derived(parameter: Parameter, derived: DerivedArguments | None, table: Registry | None) -> bool:
    """Whether the program derives an argument; a plug-in's part need not repeat the marker of the others in its table."""
    if derived is not None:
        return parameter.name in derived
    others = (signature_of(table.get(each)).parameters.get(parameter.name) for each in table or () if table is not None)
    return any(each is not None and each.marker(Derived) is not None for each in chain([parameter], others))


def build_part(part: Part | Kwargs, table: str, tables: Tables, derived: DerivedArguments | None = None, path: str = "") -> Any:
    """Build the object that ``part`` stands for, the parts in it first.

    An argument in ``derived`` is filled in, here and in the parts inside, where the signature has it and the YAML does not give
    it. Raises ``ConfigError`` with all problems before anything is built, and for a ``ValueError`` of a constructor.
    """
    derived = derived or {}
    problems = check_part(part, table, tables, path, derived)
    if problems:
        raise ConfigError(problems)
    return _built(part, table, tables, derived, path)


def _resolved(part: Part | Kwargs, table: str, tables: Tables, path: str) -> tuple[Part, Target]:
    """``part`` and its class or function. Raises ``ConfigError`` for what is wrong with its form and its type."""
    try:
        part = read_section(Part, part, path)
    except UserError as error:
        raise ConfigError(error.problems) from error
    registry, key = tables[table], _join(path, "type")
    try:
        target = registry.get(part.type)
    except UserError as error:
        raise ConfigError(replace(problem, key=key) for problem in error.problems) from error
    plugin = registry.plugins.get(part.type)
    wrong = (registry.contract.class_problem(target) or signature_problem(target, plugin)) if plugin is not None else None
    if wrong is not None:
        raise ConfigError([replace(wrong, key=key)])
    return part, target


def _given(signature: Signature, kwargs: Kwargs) -> Record:
    """``kwargs`` without the nulls that mean "not given"."""
    known = signature.parameters
    return {
        name: value
        for name, value in kwargs.items()
        if value is not None or name not in known or (known[name].takes_none and known[name].default is not None)
    }


def _check_nested(
    value: object, parameter: Parameter, tables: Tables, path: str, derived: DerivedArguments | None
) -> Iterator[Problem]:
    expected = None
    if isinstance(value, list | tuple):
        expected = None if parameter.many else "one block {type, kwargs}"
    elif not parameter.single:
        expected = "a list of blocks {type, kwargs}"
    elif not isinstance(value, Mapping | Part):
        expected = "a block {type, kwargs}"
    if expected is not None:
        yield Problem(got=Verbatim(shown(value)), expected=expected, key=path)
        return
    assert parameter.table is not None
    for item, where in _each(value, path):
        yield from check_part(item, parameter.table, tables, where, derived)


def _each(value: Json, path: str) -> Sequence[tuple[Part | Kwargs, str]]:
    """The parts of an argument that may be a list of them, each with its path."""
    return [(item, f"{path}.{at}") for at, item in enumerate(value)] if isinstance(value, list | tuple) else [(value, path)]


def _wrong_values(target: Target, signature: Signature, given: Kwargs, path: str) -> Iterator[Problem]:
    known = {name: value for name, value in given.items() if name in signature.parameters}
    try:
        signature_model(target).model_validate(known)
    except ValidationError as error:
        for fault in faults(error, known):
            key, is_missing = _join(path, fault.path), fault.errors[0]["type"] == "missing"
            yield Problem("is missing", key=key) if is_missing else mismatch(fault.errors, key)


def _contradictions(given: Kwargs, derived: DerivedArguments, path: str) -> Iterator[Problem]:
    for name, known in derived.items():
        if isinstance(known, Exact) and name in given and given[name] != known.value:
            expected = f"{shown(known.value)}, which follows from {known.source}"
            fix = f"Remove {name}, or correct one of them."
            yield Problem(got=Verbatim(shown(given[name])), expected=expected, key=_join(path, name), fix=fix)


def _built(part: Part | Kwargs, table: str, tables: Tables, derived: DerivedArguments, path: str) -> Any:
    part, target = _resolved(part, table, tables, path)
    made = _called(target, _arguments(target, part.kwargs, tables, derived, _join(path, "kwargs")), path)
    wrong = tables[table].contract.object_problem(made) if part.type in tables[table].plugins else None
    if wrong is not None:
        raise ConfigError([replace(wrong, key=_join(path, "type"))])
    return made


def _called(target: Target, arguments: Kwargs, path: str) -> Any:
    try:
        return target(**arguments)
    except ValueError as error:  # what a constructor reports to the user, by convention
        if isinstance(error, ConfigError) or (isinstance(error, UserError) and error.file):
            raise
        problems = error.problems if isinstance(error, UserError) else (Problem(str(error)),)
        raise ConfigError(
            replace(problem, key=_join(path, problem.key and f"kwargs.{problem.key}")) for problem in problems
        ) from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:  # a file that the part reads
        what = f"{name_of(target)} cannot read {error.filename} ({error.strerror})"
        raise ConfigError([Problem(what, key=path, fix="Correct the path in its kwargs.")]) from error
    except TypeError as error:
        if target.__module__.partition(".")[0] not in _LIBRARIES:
            raise
        raise ConfigError([Problem(str(error), key=path)]) from error


def _arguments(target: Target, kwargs: Kwargs, tables: Tables, derived: DerivedArguments, path: str) -> Record:
    """Return the arguments of ``target``: converted values, derived values, built parts."""
    signature = signature_of(target)
    given = _given(signature, kwargs)
    known = {name: value for name, value in given.items() if name in signature.parameters}
    made = {**given, **signature_model(target).model_validate(known).given()}
    for name, parameter in signature.parameters.items():
        if name in given and parameter.table is not None:
            built = [_built(item, parameter.table, tables, derived, where) for item, where in _each(given[name], _join(path, name))]
            made[name] = built if isinstance(given[name], list | tuple) else built[0]
        elif name not in given and name in derived:
            value = derived[name]
            made[name] = value.value if isinstance(value, Exact) else value
    return {**made, **{name: derived[name] for name in signature.internal if name in derived}}


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path and name else path or str(name)
