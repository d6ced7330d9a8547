"""The way from the command line to ``backward()`` stays short, and what stands on it small."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from up.build.experiment import all_tables, find_task
from up.engine.session import TrainingSession
from up.optim import build_schedule
from up.tasks.task import Task

ROOT = Path(__file__).resolve().parents[2]
PATH = ("up/__main__.py", "up/commands/train.py", "up/build/build.py", "up/engine/loop.py", "up/engine/step.py")  # and Task.loss
MAX_PATH_LINES = 600
MAX_BUILD_IMPORTS = 25
MAX_PARAMETERS = 7


def lines_of(path: str) -> list[str]:
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def test_from_the_command_line_to_backward() -> None:
    loss = inspect.getsource(Task.loss).splitlines()
    assert sum(len(lines_of(path)) for path in PATH) + len(loss) <= MAX_PATH_LINES
    assert any("backward" in line for line in lines_of("up/engine/loop.py"))


def test_the_tour_lists_the_path_in_its_order() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d\. `([^`:]+)", tour[tour.index("## The way to `backward()`") :], flags=re.M)
    assert listed[: len(PATH)] == list(PATH)


def test_build_imports_few() -> None:
    tree = ast.parse("\n".join(lines_of("up/build/build.py")))
    assert sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree)) <= MAX_BUILD_IMPORTS


def test_the_session_has_no_untyped_field() -> None:
    assert not re.search(r"\bAny\b", inspect.getsource(inspect.getmodule(TrainingSession)))  # type: ignore[arg-type]


def test_functions_take_few_parameters() -> None:
    """Except what a YAML file calls: parts and the classes that they derive from, and the schedule of a file."""
    called = {("up.optim.schedules", build_schedule.__name__)}
    for table in all_tables(find_task("cls"), []).values():
        for name in table:
            target = table.get(name)
            kinds = target.__mro__ if isinstance(target, type) else [target]
            called |= {(kind.__module__, kind.__qualname__) for kind in kinds if hasattr(kind, "__qualname__")}
    wrong = [place for place, owner in wide_functions() if owner not in called]
    assert not wrong, "\n".join(wrong)


def wide_functions() -> Iterator[tuple[str, tuple[str, str]]]:
    """The place and the owner (module, class or function) of each function with more parameters than ``MAX_PARAMETERS``."""
    for path in sorted((ROOT / "up").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for top in ast.parse(path.read_text(encoding="utf-8")).body:
            for node in ast.walk(top):
                if isinstance(node, ast.FunctionDef):
                    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    number = sum(argument.arg not in ("self", "cls") for argument in arguments)
                    if number > MAX_PARAMETERS:
                        yield f"{path}:{node.lineno}: {node.name} takes {number} parameters", (module, getattr(top, "name", ""))
