"""Tests assert facts, not sentences: the wording of a message stays free to improve (tests/harness/facts.py)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.rglob("*.py"))
LONGEST = 25  # characters of prose that an assertion may pin
METHODS = ("startswith", "endswith")
PINNED = {
    "unit/test_errors.py",  # the template of all messages, itself the contract
    "unit/config/test_signature.py",  # text of the JSON Schema that editors show
}


def text_of(node: ast.AST) -> str | None:
    """The text of a constant, an f-string (without its values), an escaped text, or a sum of such; None for another node."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return (text_of(node.left) or "") + (text_of(node.right) or "") or None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "escape" and node.args:
        return text_of(node.args[0])
    return None


def compared(tree: ast.AST) -> Iterator[ast.expr]:
    """What the file compares something with: by an operator, by ``match=``, by the beginning or the end of a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                yield from side.elts if isinstance(side, ast.List | ast.Tuple) else [side]
        elif isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "match")
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield from node.args


def is_prose(text: str) -> bool:
    text = max(re.split(r"(?<!\\)\|", text), key=len)  # the longest of the choices of a pattern
    return len(text) >= LONGEST and text.count(" ") >= 3 and len(re.findall(r"[A-Za-z]{2,}", text)) >= 4


def sentences(path: Path) -> list[tuple[int, str]]:
    nodes = ((node, text_of(node)) for node in compared(ast.parse(path.read_text(encoding="utf-8"))))
    return [(node.lineno, text) for node, text in nodes if text is not None and is_prose(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_assertion_pins_a_sentence(path: Path) -> None:
    if str(path.relative_to(TESTS)) not in PINNED:
        assert sentences(path) == []


def test_pinned_files_need_it() -> None:
    assert all(sentences(TESTS / name) for name in PINNED)


def test_a_sentence_is_found(tmp_path: Path) -> None:
    path = tmp_path / "test_x.py"
    path.write_text(
        'assert "got 3 of them, expected at least four" in text\n'
        'raises(E, match=r"no module of the net gives logits")\n'
        'assert text == "net.0.kwargs.lr: got -1"\n'
    )
    assert [line for line, _ in sentences(path)] == [1, 2]
