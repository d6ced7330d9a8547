"""tools/quickstart.py: which predictions it shows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.harness.documented import tool
from tests.harness.facts import tells


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    rows = [
        ("a", "one", "one", 0.9),
        ("b", "one", "one", 0.99),
        ("c", "two", "two", 0.5),
        ("d", "two", "one", 0.6),
        ("e", "one", "two", 0.8),
    ]
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label", "prediction", "correct", "top1", "score1"])
        writer.writerows([name, label, said, int(label == said), said, f"{score:.6f}"] for name, label, said, score in rows)
    return tmp_path / "predictions.csv"


def test_the_surest_right_ones_and_a_real_miss_are_shown(predictions: Path) -> None:
    quickstart = tool("quickstart")
    right, wrong = quickstart.showcase(predictions)
    assert [row["filename"] for row in right] == ["b", "c"]  # one a class
    assert [row["filename"] for row in wrong] == ["e"]
    assert tells(quickstart.told(right, wrong), "'one'", "predicted", "'two'")
    assert tells(quickstart.told(right, []), "validation", "predicted", "wrongly")
