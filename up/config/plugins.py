"""Modules that bring parts of their own: what ``runtime.plugins`` and the variable PLUGINPATH name."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from up.errors import UserError
from up.registry import Registry, resolve
from up.text import did_you_mean


def extended(tables: Mapping[str, Registry], modules: Sequence[str]) -> dict[str, Registry]:
    """``tables`` with what the plug-in ``modules`` add, each by ``TABLES = {"loss": {"my_loss": "my_lab.parts:MyLoss"}}``.

    Raises ``UserError`` for a module that cannot be imported and for an entry that leads nowhere.
    """
    known = dict(tables)
    for written in modules:
        module = import_plugin(written)
        name = module.__name__
        for table, entries in _tables_of(module, name).items():
            if table not in known:
                raise UserError(f"{name}.TABLES: there is no table {table!r}.{did_you_mean(table, known)}")
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
    """The module ``my_lab.parts``, or that of a path such as ``my_lab/parts.py`` (``.py`` may be left out).

    The folder of a path joins the import path. Raises ``UserError`` that names the line of its code that fails.
    """
    if "/" not in written and not written.endswith(".py"):
        return _imported(written)
    path = Path(written).expanduser().absolute()
    path = path.with_suffix("") if path.suffix == ".py" else path
    found = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
    if found is None:
        beside = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"{written!r}: no such module, expected {path}.py.{did_you_mean(f'{path.name}.py', beside)}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = _imported(path.name)
    if module.__file__ is None or not found.samefile(module.__file__):
        where = f"{path.name!r} is already the name of the module {module.__file__ or 'built into Python'}"
        raise UserError(f"{written!r} cannot be imported: {where}. Rename the file, or name it as PACKAGE.{path.name}.")
    return module


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"{name!r} cannot be imported ({error}). Is it installed, or on PYTHONPATH?") from error
        raise _fails(name, error) from error
    except Exception as error:  # whatever the module does while it is imported
        raise _fails(name, error) from error


def _fails(name: str, error: Exception) -> UserError:
    if isinstance(error, SyntaxError):
        where, what = f"{error.filename}:{error.lineno}", f"{error.msg}"
    else:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        frame = next((each for each in own if each.filename != __file__), own[-1])
        where, what = f"{frame.filename}:{frame.lineno}", f"{type(error).__name__}: {error}"
    return UserError(f"{name!r} cannot be imported: {where}: {what}. Correct the module, or install what it imports.")


def _tables_of(module: ModuleType, name: str) -> Mapping[str, Any]:
    found = getattr(module, "TABLES", None)
    if not isinstance(found, Mapping):
        says = "has no TABLES" if found is None else f"TABLES: got {found!r}"
        raise UserError(f'{name}: {says}, expected TABLES = {{"loss": {{"my_loss": "{name}:MyLoss"}}}}. Add it to the module.')
    return found


def require_entries(owner: str, entries: Any) -> None:
    if not isinstance(entries, Mapping):
        raise UserError(f"{owner}: got {entries!r}, expected a dict from a name to 'module:Class'.")
    for name, reference in entries.items():
        if not isinstance(reference, str):
            near = f"'{reference.__module__}:{reference.__qualname__}'" if isinstance(reference, type) else "'module:Class'"
            raise UserError(f"{owner}: {name!r} is {reference!r}, expected text: {near}.")
        module, _, attribute = reference.partition(":")
        if not module or not attribute:
            raise UserError(f"{owner}: {name!r} leads to {reference!r}, expected 'module:Class', such as 'my_parts:MyLoss'.")
        try:
            resolve(reference)
        except AttributeError as error:
            near = did_you_mean(attribute, vars(import_module(module)))
            raise UserError(f"{owner}: {name!r} leads to {reference!r}, which is not there ({error}).{near}") from error
        except ModuleNotFoundError as error:
            raise UserError(f"{owner}: {name!r} leads to {reference!r}, which is not there ({error}).") from error
        except Exception as error:  # whatever that module does while it is imported
            raise UserError(f"{owner}: {name!r}: {_fails(module, error)}") from error


def signature_problem(target: Any, plugin: str) -> str | None:
    """What keeps the YAML from being checked against the constructor of a plug-in's ``target``; None for code of a library."""
    inner = target.func if isinstance(target, partial) else target
    function = inspect.unwrap(type.__getattribute__(inner, "__init__") if isinstance(inner, type) else inner)
    if not inspect.isfunction(function) or function.__module__.partition(".")[0] != plugin.partition(".")[0]:
        return None
    name = f"{inner.__module__}.{inner.__qualname__}"
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        return f"{name}: an annotation of its constructor cannot be evaluated ({error}). Import the name at the top of the module."
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters[1:] if isinstance(inner, type) else parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return f"{name}: the argument `{parameter.name}` is positional-only, and a YAML names its arguments. Remove the `/`."
        is_named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if is_named and parameter.name not in hints:
            example = _type_of(parameter.default)
            return (
                f"{name}: the argument `{parameter.name}` has no annotation, so its value cannot be checked. "
                f"Write `{parameter.name}: {example}`."
            )
    return None


def _type_of(default: Any) -> str:
    return type(default).__name__ if isinstance(default, bool | int | float | str | list | dict) else "float"
