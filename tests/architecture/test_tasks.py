"""Nothing shaped like classification is known to engine, build, config, tracking, or the archive of packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "up"
NEUTRAL = ("engine", "build", "config", "tracking", "bundle/archive.py")
WORDS = {
    "num_classes",
    "class_counts",
    "classifier",
    "classifiers",
    "logits",
    "labels",
    "top1",
    "top5",
    "topk",
    "softmax",
    "accuracy",
}
ALLOWED = {
    ("build/data.py", "labels"): "argument of the samplers that weigh samples by what a data set calls its labels",
    ("build/check.py", "labels"): "argument of the exporter, whose labels are names of any prediction",
    ("tracking/grad_cam.py", "logits"): "Grad-CAM explains the score of a class (Selvaraju et al. 2017)",
    ("tracking/grad_cam.py", "softmax"): "likewise",
    ("tracking/feature_maps.py", "topk"): "the method of tensors",
    ("config/tree.py", "labels"): "what the entries of a list in YAML are called",
}


def identifiers(path: Path) -> Iterator[tuple[str, int]]:
    """Names, attributes, arguments and short strings of a file; docstrings and comments may speak of examples."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field in ("id", "attr", "arg", "name", "value"):
            found = getattr(node, field, None)
            if isinstance(found, str):
                yield found, getattr(node, "lineno", 0)


def files() -> list[Path]:
    return sorted(
        path for room in NEUTRAL for path in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*.py"))
    )


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_knows_nothing_of_classification(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    found = [f"{name}:{line}: {word}" for word, line in identifiers(path) if word in WORDS and (name, word) not in ALLOWED]
    assert not found


def test_what_is_allowed_is_there() -> None:
    assert all(word in {found for found, _ in identifiers(PACKAGE / name)} for name, word in ALLOWED)
