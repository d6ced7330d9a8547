"""Tests stand on their own: what several share is in ``tests/harness``."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def is_test_file(module: str) -> bool:
    name = module.rpartition(".")[2]
    return module.startswith("tests.") and (name.startswith("test_") or name == "conftest")


def test_no_test_file_is_imported() -> None:
    wrong = []
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.relative_to(TESTS)}:{node.lineno}: {module}" for module in modules if is_test_file(module)]
    assert not wrong, "move what is shared to tests/harness: " + ", ".join(wrong)
