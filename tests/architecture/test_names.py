"""One public class of a name, and few values without a type."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from up import run_files

FILES = sorted((Path(__file__).resolve().parents[2] / "up").rglob("*.py"))
MAX_UNTYPED = 100  # where torch, timm or a YAML file force it


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_files_of_a_run_are_named_in_one_place() -> None:
    """A new run in the folder of an earlier one sets aside the files that this place lists."""
    names = {name for name in run_files.OF_A_RUN if re.fullmatch(r"\w+\.\w+", name)}
    assert {"config.yaml", "metrics.jsonl", "averaging.json"} <= names
    found = [
        f"{file}:{node.lineno}: {node.value}"
        for file in FILES
        if file.name != "run_files.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert found == []


def test_few_values_are_of_any_type() -> None:
    nodes = (node for file in FILES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    assert sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes) <= MAX_UNTYPED
