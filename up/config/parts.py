"""Parts from ``{type, kwargs}``: everything that is wrong with them first, then the objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import ValidationError

from up.config.argument import Derived, NoEffect, PartOf
from up.config.plugins import signature_problem
from up.config.section import Part, Section
from up.config.signature import Parameter, Signature, Target, name_of, signature_model, signature_of, type_text
from up.config.wording import faults, mismatch, unknown
from up.errors import ConfigError, Problem, UserError
from up.registry import Registry
from up.text import Verbatim, shown
from up.types import Json, Kwargs, Record

Tables: TypeAlias = "Mapping[str, Registry]"
DerivedArguments: TypeAlias = "Mapping[str, object]"  # the derived arguments by name, some of them Exact

_LIBRARIES = ("torch", "torchvision", "timm")  # annotated loosely: their constructors say by a TypeError what does not fit


@dataclass(frozen=True)
class Exact:
    """A derived value that the YAML may repeat but not contradict, and its source: ``Exact(10, "the classes of the data set")``."""

    value: object
    source: str


def parts_of(section: Section) -> Iterator[tuple[str, Part, str]]:
    """Path, part and table of every part in ``section`` whose table the section itself names, at any depth.

    Those of ``net``, ``teacher*``, ``trainer.optimizer`` and ``trainer.lr_scheduler`` belong to whoever builds them.
    """
    for name, field in type(section).model_fields.items():
        path = "" if name in section.gathers else name
        tables = [*field.metadata, *_metadata(field.annotation)]
        table = next((extra.table for extra in tables if isinstance(extra, PartOf)), None)
        yield from _parts_in(getattr(section, name), path, table)


def _metadata(annotation: object) -> Iterator[object]:
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    for argument in get_args(annotation):
        yield from _metadata(argument)


def _parts_in(value: object, path: str, table: str | None) -> Iterator[tuple[str, Part, str]]:
    if isinstance(value, Part) and table is not None:
        yield path, value, table
    elif isinstance(value, Section):
        for inner, part, its_table in parts_of(value):
            yield _join(path, inner), part, its_table
    elif isinstance(value, list | dict):
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            yield from _parts_in(item, _join(path, str(key)), table)


def check_part(
    part: Part | Kwargs, table: str, tables: Tables, path: str = "", derived: DerivedArguments | None = None
) -> list[Problem]:
    """All that is wrong with ``part`` and the parts in it: unknown types and arguments, wrong values, missing arguments.

    ``derived`` are the derived arguments, None where they are not known yet: what is ``Derived`` may be missing then. An ``Exact``
    one may not be contradicted.
    """
    problems: list[Problem] = []
    found = _resolve(part, table, tables, path, problems)
    if found is not None:
        target, kwargs = found
        owner = part.type if isinstance(part, Part) else str(part["type"])
        problems += check_kwargs(target, kwargs, tables, _join(path, "kwargs"), derived, owner, tables[table])
    beside = {_join(path, f"kwargs.{key}"): key for key in type(part).model_fields} if isinstance(part, Part) else {}
    return [
        replace(problem, what=f"stands beside kwargs, not in it: move {beside[problem.key]} one level up")
        if problem.about_key and problem.key in beside
        else problem
        for problem in problems
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
    """All that is wrong with ``kwargs`` as arguments of ``target``, a part of ``table`` that messages call ``owner``."""
    signature = signature_of(target)
    owner = owner or signature.owner
    given = _given(signature, kwargs)
    problems = []
    for name in kwargs:
        if name in signature.internal:
            what = f"is not for the file to give: the program tells {owner} its {name}. Leave it out."
            problems.append(Problem(what, key=_join(path, str(name)), about_key=True))
        elif name not in signature.parameters and not signature.open:
            what = unknown(owner, str(name), list(signature.parameters), "argument")
            problems.append(Problem(what, key=_join(path, str(name)), about_key=True))
    for name, parameter in signature.parameters.items():
        where = _join(path, name)
        if name not in given:
            if parameter.required and not _will_be_filled_in(parameter, derived, table):
                problems.append(Problem(f"is missing ({owner} needs it: {type_text(parameter.annotation)})", key=where))
        elif parameter.table is not None:
            problems += _check_nested(given[name], parameter, tables, where, derived)
    problems += _wrong_values(target, signature, given, path)
    return problems + list(_contradictions(given, derived, path))


def _will_be_filled_in(parameter: Parameter, derived: DerivedArguments | None, table: Registry | None) -> bool:
    """Whether the program derives an argument; a plug-in's part need not repeat the marker of the others in its table."""
    if derived is not None:
        return parameter.name in derived
    others = (signature_of(table.get(each)).parameters.get(parameter.name) for each in table or () if table is not None)
    return any(each is not None and each.marker(Derived) is not None for each in chain([parameter], others))


def notes_on_part(part: Part | Kwargs, table: str, tables: Tables, path: str) -> Iterator[tuple[str, str]]:
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
        where, unused = f"{path}.kwargs.{name}", parameter.marker(NoEffect)
        if unused is not None and value != parameter.default:
            yield where, f"{name} of {part.type} has no effect: {unused.reason}"
        elif parameter.table is not None:
            many = isinstance(value, list | tuple)
            for index, item in enumerate(value if many else [value]):
                yield from notes_on_part(item, parameter.table, tables, f"{where}.{index}" if many else where)


def paths_of(part: Part, table: str, tables: Tables) -> Iterator[tuple[str, str]]:
    """The files and folders that the kwargs of ``part`` name, by key below ``kwargs``, those of the parts in it included."""
    parameters = signature_of(tables[table].get(part.type)).parameters
    for name, value in part.kwargs.items():
        parameter = parameters.get(name)
        if parameter is None:
            continue
        if parameter.table is not None:
            many = isinstance(value, list)
            for index, item in enumerate(value if many else [value]):
                where = f"{name}.{index}" if many else name
                if isinstance(item, Mapping) and item.get("type") in tables[parameter.table]:
                    inner = paths_of(Part.model_validate(item), parameter.table, tables)
                    yield from ((f"{where}.kwargs.{key}", path) for key, path in inner)
        elif isinstance(value, str) and value and parameter.is_path:
            yield name, value
        elif isinstance(value, list) and parameter.is_path_list:
            yield from ((f"{name}.{index}", item) for index, item in enumerate(value) if isinstance(item, str))


def build_part(part: Part | Kwargs, table: str, tables: Tables, derived: DerivedArguments | None = None, path: str = "") -> Any:
    """The object that ``part`` stands for, the parts in it built first.

    An argument in ``derived`` is filled in, here and in the parts inside, where the signature has it and the YAML does not give
    it. Raises ``ConfigError`` with all problems before anything is built, and for a ``ValueError`` of a constructor.
    """
    derived = derived or {}
    problems = check_part(part, table, tables, path, derived)
    if problems:
        raise ConfigError(problems)
    return _built(part, table, tables, derived, path)


def build(target: Target, kwargs: Kwargs, tables: Tables, derived: DerivedArguments | None = None, path: str = "") -> Any:
    """``target`` called with ``kwargs``; as ``build_part``, for who has the class already."""
    made = arguments(target, kwargs, tables, derived, path)
    return _called(target, made, path)


def arguments(target: Target, kwargs: Kwargs, tables: Tables, derived: DerivedArguments | None = None, path: str = "") -> Record:
    """What ``build`` calls ``target`` with: converted values, filled-in values, built parts."""
    derived = derived or {}
    problems = check_kwargs(target, kwargs, tables, path, derived)
    if problems:
        raise ConfigError(problems)
    return _arguments(target, kwargs, tables, derived, path)


def _resolve(part: Part | Kwargs, table: str, tables: Tables, path: str, problems: list[Problem]) -> tuple[Target, Kwargs] | None:
    """The class and the kwargs of ``part``, or what is wrong with its form and its type."""
    if not isinstance(part, Part):
        try:
            part = Part.model_validate(part)
        except ValidationError as error:
            for fault in faults(error, part):
                kind, key = fault.errors[0]["type"], _join(path, fault.path)
                if kind == "extra_forbidden":
                    what = unknown("a part", fault.path, list(Part.model_fields))
                    problems.append(Problem(what, key=key, about_key=True))
                else:
                    problems.append(Problem("is missing", key=key) if kind == "missing" else mismatch(fault.errors, key))
            return None
    registry = tables[table]
    try:
        target = registry.get(part.type)
    except UserError as error:
        problems.append(Problem(str(error), key=_join(path, "type")))
        return None
    plugin = registry.plugins.get(part.type)
    wrong = (registry.contract.class_problem(target) or signature_problem(target, plugin)) if plugin is not None else None
    if wrong is not None:
        problems.append(Problem(wrong, key=_join(path, "type")))
        return None
    return target, part.kwargs


def _given(signature: Signature, kwargs: Kwargs) -> Record:
    """``kwargs`` without the nulls that mean "not given"."""
    given = {}
    for name, value in kwargs.items():
        parameter = signature.parameters.get(name)
        if value is None and parameter is not None and (parameter.default is None or not parameter.takes_none):
            continue
        given[name] = value
    return given


def _check_nested(
    value: object, parameter: Parameter, tables: Tables, path: str, derived: DerivedArguments | None
) -> list[Problem]:
    assert parameter.table is not None
    if isinstance(value, list | tuple):
        if not parameter.many:
            return [Problem(got=value, expected="one block {type, kwargs}", key=path)]
        found = [check_part(item, parameter.table, tables, f"{path}.{index}", derived) for index, item in enumerate(value)]
        return [problem for problems in found for problem in problems]
    if not parameter.single:
        return [Problem(got=value, expected="a list of blocks {type, kwargs}", key=path)]
    if not isinstance(value, Mapping | Part):
        return [Problem(got=Verbatim(shown(value)), expected="a block {type, kwargs}", key=path)]
    return check_part(value, parameter.table, tables, path, derived)


def _wrong_values(target: Target, signature: Signature, given: Kwargs, path: str) -> Iterator[Problem]:
    known = {name: value for name, value in given.items() if name in signature.parameters}
    try:
        signature_model(target).model_validate(known)
    except ValidationError as error:
        for fault in faults(error, known):
            key, is_missing = _join(path, fault.path), fault.errors[0]["type"] == "missing"
            yield Problem("is missing", key=key) if is_missing else mismatch(fault.errors, key)


def _contradictions(given: Kwargs, derived: DerivedArguments | None, path: str) -> Iterator[Problem]:
    for name, known in (derived or {}).items():
        if isinstance(known, Exact) and name in given and given[name] != known.value:
            says = f"got {shown(given[name])}, but {shown(known.value)} follows from {known.source}"
            what = f"{says} (leave {name} out, or correct one of them)"
            yield Problem(what, key=_join(path, name))


def _built(part: Part | Kwargs, table: str, tables: Tables, derived: DerivedArguments, path: str) -> Any:
    part = part if isinstance(part, Part) else Part.model_validate(part)
    target = tables[table].get(part.type)
    made = _called(target, _arguments(target, part.kwargs, tables, derived, _join(path, "kwargs")), path)
    what = tables[table].contract.object_problem(made) if part.type in tables[table].plugins else None
    if what is not None:
        raise ConfigError([Problem(what, key=_join(path, "type"))])
    return made


def _called(target: Target, made: Kwargs, path: str) -> Any:
    try:
        return target(**made)
    except ValueError as error:  # by the rules of the house, what a constructor says to the user
        if isinstance(error, ConfigError) or (isinstance(error, UserError) and error.file):
            raise
        problems = error.problems if isinstance(error, UserError) else (Problem(str(error)),)
        raise ConfigError(
            replace(problem, key=_join(path, problem.key and f"kwargs.{problem.key}")) for problem in problems
        ) from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:  # a file that the part reads
        what = f"{name_of(target)} cannot read {error.filename} ({error.strerror}). Correct the path in its kwargs."
        raise ConfigError([Problem(what, key=path)]) from error
    except TypeError as error:
        if target.__module__.partition(".")[0] not in _LIBRARIES:
            raise
        raise ConfigError([Problem(str(error), key=path)]) from error


def _arguments(target: Target, kwargs: Kwargs, tables: Tables, derived: DerivedArguments, path: str) -> Record:
    signature = signature_of(target)
    given = _given(signature, kwargs)
    known = {name: value for name, value in given.items() if name in signature.parameters}
    made = {**given, **signature_model(target).model_validate(known).given()}
    for name, parameter in signature.parameters.items():
        if name in given and parameter.table is not None:
            made[name] = _nested(given[name], parameter.table, tables, derived, _join(path, name))
        elif name not in given and name in derived:
            value = derived[name]
            made[name] = value.value if isinstance(value, Exact) else value
    return {**made, **{name: derived[name] for name in signature.internal if name in derived}}


def _nested(value: Json, table: str, tables: Tables, derived: DerivedArguments, path: str) -> Any:
    if isinstance(value, list | tuple):
        return [_built(item, table, tables, derived, f"{path}.{index}") for index, item in enumerate(value)]
    return _built(value, table, tables, derived, path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
