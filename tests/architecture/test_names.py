"""One public class of a name, and few values without a type."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

FILES = sorted((Path(__file__).resolve().parents[2] / "up").rglob("*.py"))
MAX_UNTYPED = 100  # where torch, timm or a YAML file force it


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{file}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_few_values_are_of_any_type() -> None:
    nodes = (node for file in FILES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    assert sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes) <= MAX_UNTYPED
