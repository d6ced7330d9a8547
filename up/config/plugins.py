"""Modules with parts of the user's own: those that ``runtime.plugins`` and the variable PLUGINPATH name."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

from up.errors import Problem, UserError
from up.registry import Registry, resolve
from up.text import Verbatim, did_you_mean


def extended(tables: Mapping[str, Registry], modules: Sequence[str]) -> dict[str, Registry]:
    """Return ``tables`` with those of the plug-in ``modules``, each with ``TABLES = {"loss": {"my_loss": "my_lab.parts:MyLoss"}}``.

    Raises ``UserError`` for a module that cannot be imported and for an entry that leads nowhere.
    """
    known = dict(tables)
    for written in modules:
        module = import_plugin(written)
        name = module.__name__
        added = getattr(module, "TABLES", None)
        if not isinstance(added, Mapping):
            what, got = (f"{name} has no TABLES", None) if added is None else (f"{name}.TABLES", Verbatim(repr(added)))
            expected = f'TABLES = {{"loss": {{"my_loss": "{name}:MyLoss"}}}}'
            raise UserError(what, got=got, expected=expected, fix="Add it to the module.")
        for table, entries in added.items():
            if table not in known:
                raise UserError(f"{name}.TABLES", got=table, expected="a table", fix=did_you_mean(table, known).strip())
            require_entries(f"{name}.TABLES", entries)
            known[table] = known[table].extended(entries, plugin=name)
    return known


def make_importable(folder: Path | None) -> None:
    """Put the working folder on the import path, as ``python -m up`` does and the script ``up`` does not, and ``folder`` last."""
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    if folder is not None and str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def import_plugin(written: str) -> ModuleType:
    """Import the module ``my_lab.parts``, or that of a path such as ``my_lab/parts.py`` (``.py`` may be left out).

    The folder of a path joins the import path. Raises ``UserError`` that names the line of its code that fails.
    """
    if "/" not in written and not written.endswith(".py"):
        return _imported(written)
    path = Path(written).expanduser().absolute()
    path = path.with_suffix("") if path.suffix == ".py" else path
    found = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
    if found is None:
        beside = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        fix = did_you_mean(f"{path.name}.py", beside).strip()
        raise UserError(f"{written!r}: no such module", expected=f"{path}.py", fix=fix)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = _imported(path.name)
    if module.__file__ is None or not found.samefile(module.__file__):
        what = f"{path.name!r} is already the name of the module {module.__file__ or 'built into Python'}"
        fix = f"Rename the file, or name it as PACKAGE.{path.name}."
        raise UserError(f"{written!r} cannot be imported: {what}", fix=fix)
    return module


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:  # whatever the module does while it is imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise _fails(name, error) from error
        raise UserError(f"{name!r} cannot be imported ({error})", fix="Install it, or add its folder to PYTHONPATH.") from error


def _fails(name: str, error: Exception) -> UserError:
    if isinstance(error, SyntaxError):
        where, what = f"{error.filename}:{error.lineno}", f"{error.msg}"
    else:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        frame = next((each for each in own if each.filename != __file__), own[-1])
        where, what = f"{frame.filename}:{frame.lineno}", f"{type(error).__name__}: {error}"
    return UserError(f"{name!r} cannot be imported: {where}: {what}", fix="Correct the module, or install what it imports.")


def require_entries(owner: str, entries: object) -> None:
    """Raise ``UserError`` unless ``entries`` lead from names to classes, as ``{"my_loss": "my_lab.parts:MyLoss"}`` does."""
    if not isinstance(entries, Mapping):
        raise UserError(owner, got=Verbatim(repr(entries)), expected="a dict from a name to 'module:Class'")
    for name, reference in entries.items():
        entry = f"{owner}: {name!r}"
        if not isinstance(reference, str):
            near = f"'{reference.__module__}:{reference.__qualname__}'" if isinstance(reference, type) else "'module:Class'"
            raise UserError(entry, got=Verbatim(repr(reference)), expected=f"text: {near}")
        module, _, attribute = reference.partition(":")
        if not module or not attribute:
            raise UserError(entry, got=reference, expected="'module:Class', such as 'my_parts:MyLoss'")
        try:
            resolve(reference)
        except (AttributeError, ModuleNotFoundError) as error:
            near = did_you_mean(attribute, vars(import_module(module))) if isinstance(error, AttributeError) else ""
            raise UserError(f"{entry} leads to {reference!r}, which does not exist ({error})", fix=near.strip()) from error
        except Exception as error:  # whatever that module does while it is imported
            raise UserError(f"{entry}: {_fails(module, error)}") from error


def signature_problem(target: Callable[..., object], plugin: str) -> Problem | None:
    """Find what keeps the YAML from being checked against the constructor of a plug-in's ``target``; None for a library's code."""
    inner = target.func if isinstance(target, partial) else target
    function = inspect.unwrap(type.__getattribute__(inner, "__init__") if isinstance(inner, type) else inner)
    if not inspect.isfunction(function) or function.__module__.partition(".")[0] != plugin.partition(".")[0]:
        return None
    name = f"{inner.__module__}.{inner.__qualname__}"
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        what = f"{name}: an annotation of its constructor cannot be evaluated ({error})"
        return Problem(what, fix="Import the name at the top of the module.")
    parameters = list(inspect.signature(function).parameters.values())
    for each in parameters[1:] if isinstance(inner, type) else parameters:
        if each.kind is each.POSITIONAL_ONLY:
            what = f"{name}: the argument `{each.name}` is positional-only, and a YAML names its arguments"
            return Problem(what, fix="Remove the `/`.")
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD) and each.name not in hints:
            known = isinstance(each.default, bool | int | float | str | list | dict)
            example = type(each.default).__name__ if known else "float"
            what = f"{name}: the argument `{each.name}` has no annotation, so its value cannot be checked"
            return Problem(what, fix=f"Write `{each.name}: {example}`.")
    return None
