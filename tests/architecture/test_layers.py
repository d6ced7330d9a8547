"""The law of the house, held by machine: imports point down, files and functions stay small, names say what is in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "up"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NAMED_FOR_NOTHING = {"utils", "util", "helper", "helpers", "common", "misc"}

# The first entry that is the module's name, or a package above it, gives its layer.
LAYERS = (
    ("up.commands", 6),
    ("up.__main__", 6),
    ("up.bench", 6),
    ("up.api", 5),
    ("up.finetune", 5),
    ("up.search", 5),
    ("up.report", 5),
    ("up.data_report", 5),
    ("up.preview", 5),
    ("up.serve", 5),
    ("up.build", 4),
    ("up.deploy", 4),
    ("up.bundle", 2),
    ("up.tasks", 3),
    ("up.distill", 3),
    ("up.supernet", 3),
    ("up.engine", 2),
    ("up.tracking", 2),
    ("up.models", 1),
    ("up.optim", 1),
    ("up.data", 1),
    ("up", 0),
)
SIBLINGS = ("up.models", "up.optim", "up.data")
OF_EVERY_TASK = ("up.tasks.task", "up.tasks.experiment", "up.tasks.report", "up.tasks.served")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> int:
    return next(level for package, level in LAYERS if within(module, package))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of this package that a file imports anywhere in it, with the line."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if within(alias.name, "up"))
        elif isinstance(node, ast.ImportFrom) and node.module and within(node.module, "up"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else node.module), node.lineno


def task_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[2] if parts[:2] == ["up", "tasks"] and len(parts) > 2 and module not in OF_EVERY_TASK else None


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name} (layer {layer(name)}) imports {target} (layer {layer(target)})"
        for name, path in MODULES.items()
        for target, line in imported(path)
        if layer(target) > layer(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_siblings_of_the_first_layer_do_not_know_each_other() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, path in MODULES.items()
        for target, line in imported(path)
        for sibling in SIBLINGS
        if within(name, sibling) and not within(target, sibling) and any(within(target, other) for other in SIBLINGS)
    ]
    assert not wrong, "\n".join(wrong)


def test_tasks_do_not_know_each_other() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, path in MODULES.items()
        for target, line in imported(path)
        if task_of(name) and task_of(target) and task_of(name) != task_of(target)
    ]
    assert not wrong, "\n".join(wrong)


def test_distillation_knows_no_task() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, path in MODULES.items()
        for target, line in imported(path)
        if within(name, "up.distill") and task_of(target)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports() -> None:
    graph = {
        name: {target for target, _ in imported(path) if target in MODULES and target != name} for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(MODULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_and_function_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    assert path.stem not in NAMED_FOR_NOTHING
    for node in nodes_of(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{node.name} at line {node.lineno} has {size} lines"


def test_only_the_command_line_prints() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        if layer(name) < 5
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, "print belongs to commands; log or return instead: " + ", ".join(wrong)


def imported_at_once(path: Path) -> set[str]:
    """The modules of this package that importing a file imports: not those of functions, nor those for type checkers."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and within(node.module, "up"):
            found |= {full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return found


@pytest.mark.parametrize(
    "module", ["up.bundle.manifest", "up.bundle.package", "up.deploy.onnx", "up.distill.onnx_teacher", "up.supernet.runner"]
)
def test_a_plain_training_does_not_import(module: str) -> None:
    """What only exports, searches and graphs as teachers need would delay the first step of every run."""
    seen, waiting = set[str](), ["up.commands.train", "up.build.build", "up.engine.loop", "up.tasks.cls.task"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imported_at_once(MODULES[name])
    assert module not in seen
