"""Load the task of a plug-in and check its declaration, one line for each mistake, with the file and line of its class."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Unpack

from torch import nn

import up
from up.config.contract import Contract, called
from up.config.plugins import import_plugin, require_entries
from up.config.signature import signature_of
from up.errors import Ending, Fields, UserError
from up.registry import Registry
from up.tasks.served import Served
from up.tasks.task import AnyTask, Task
from up.text import did_you_mean, near_names

PAGE = "docs/add_a_task.md"
_CONTRACT = Contract(PAGE, base=lambda: (Task,))
_PACKAGE = str(Path(up.__file__).parent)
_ATTRIBUTES = ("name", "parts")  # that have no default


def is_ours(made: object) -> bool:
    """Whether the class of an object is in this package, not in a plug-in."""
    return type(made).__module__.partition(".")[0] == "up"


def load_task(point: EntryPoint) -> AnyTask:
    """Load the task of an entry point. Raises ``UserError`` for anything but a task, and for one that lacks members."""
    module = import_plugin(point.module)
    task = getattr(module, point.attr, None)
    if task is None:
        near = did_you_mean(point.attr, vars(module))
        raise UserError(
            f"the entry point up.tasks: {point.name} = {point.value!r} does not exist.{near}", file=module.__file__ or ""
        )
    if isinstance(task, type) and issubclass(task, Task):
        raise error_at(task, f"{point.value} is a class", fix=f"Name an instance: {point.name.upper()} = {task.__name__}()")
    if not isinstance(task, Task):
        raise UserError(f"{point.value} is {task!r}, expected an instance of a class derived from up.tasks.task.Task ({PAGE}).")
    _check_members(type(task))
    return task


def _check_members(kind: type[AnyTask]) -> None:
    for name in _ATTRIBUTES:
        if not hasattr(kind, name):
            raise error_at(kind, f"{called(kind)} has no `{name}`", fix=f"Add it to the class ({PAGE}).")
    problem = _CONTRACT.class_problem(kind)
    if problem is not None:
        raise error_at(kind, problem.what, fix=problem.fix)
    for name in vars(kind):
        near = near_names(name, [member for member in dir(Task) if not member.startswith("_")])
        if not name.startswith("_") and not hasattr(Task, name) and name not in _ATTRIBUTES and near:
            raise error_at(kind, f"{called(kind)}.{name} is never used", fix=f"Rename it to {near[0]}, or to _{name}.")
    if not isinstance(kind.parts, Mapping) or not all(isinstance(each, Mapping | Registry) for each in kind.parts.values()):
        raise error_at(kind, f'{called(kind)}.parts: expected {{"dataset": {{"my_data": "{kind.__module__}:MyData"}}, …}}')
    if "dataset" not in kind.parts:
        raise error_at(kind, f"{called(kind)}.parts has no 'dataset'", fix="Add the data sets that `dataset.train` may name.")


def check_parts(task: AnyTask, tables: Mapping[str, Registry]) -> None:
    """Raise ``UserError`` for a part of ``task`` that leads nowhere, or that needs a kind that is not in ``tables``."""
    kind, owner = type(task), called(type(task))
    for name, parts in task.parts.items():
        if isinstance(parts, Mapping):
            require_entries(f"{owner}.parts[{name!r}]", parts)
        for entry in parts:
            target = tables[name].get(entry)
            for argument in signature_of(target).parameters.values():
                if argument.table is not None and argument.table not in tables:
                    what = f"{owner}.parts has no {argument.table!r}, of which {called(target)} takes a part"
                    raise error_at(kind, what + did_you_mean(argument.table, tables))
    for name in kind.net_kinds:
        if name not in tables and name not in Task.net_kinds:
            raise error_at(kind, f"{owner}.net_kinds: {owner}.parts has no {name!r}.{did_you_mean(name, tables)}")


def served_by(task: AnyTask, net: nn.Module, class_names: list[str] | None, activated: bool) -> Served:
    """Call ``task.serve``. Raises ``UserError`` where a plug-in returns anything but a ``Served``."""
    served: object = task.serve(net, class_names, activated)
    if not isinstance(served, Served):
        what = f"{called(type(task))}.serve returned a {type(served).__name__}"
        raise error_at(type(task).serve, what, expected="a Served(module, outputs, answer)")
    return served


def error_at(code: object, what: str, **fields: Unpack[Fields]) -> UserError:
    """Make a ``UserError`` at the line where ``code``, a class or a function of a plug-in, is defined."""
    try:
        file, line = inspect.getsourcefile(code) or "", inspect.getsourcelines(code)[1]  # type: ignore[arg-type]
    except (OSError, TypeError):  # made by a program, not in a file
        return UserError(what, **fields)
    return UserError(what, **fields, file=file, line=line)


@contextmanager
def errors_of_plugin(task: AnyTask) -> Iterator[None]:
    """Convert an exception of the code of a plug-in's ``task`` in the block to a ``UserError`` at its line."""
    try:
        yield
    except Ending:
        raise
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_plugin_code(frame.filename)]
        if is_ours(task) or not own:
            raise
        what = f"{own[-1].name} raised {type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(what, file=own[-1].filename, line=own[-1].lineno, fix="Correct the plug-in.") from error


def is_plugin_code(file: str) -> bool:
    """Whether ``file`` is neither in this package nor in an installed library."""
    return not file.startswith((_PACKAGE, "<")) and "site-packages" not in file and "/lib/python" not in file
