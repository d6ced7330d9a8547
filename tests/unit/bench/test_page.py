"""The page of results: one chapter a machine, the newest result of a row, targets met and missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from up.bench.cells import Settings
from up.bench.kinds import rows_of
from up.bench.page import by_machine, page
from up.bench.results import as_record, read_results
from up.bench.statistics import Outcome
from up.types import Record

ROOT = Path(__file__).parents[3]


def result(ours: float, *, date: str = "2026-11-01", cpus: int = 2, quick: bool = False) -> Record:
    row = next(row for row in rows_of("step") if row.name == "step.resnet18")
    outcome = Outcome(row, {"ours": [ours], "bare": [100.0]}, others=[0.0])
    record = as_record([outcome], Settings(Path("x"), quick=quick), rounds=1, gpu=None)
    record["machine"]["cpus"] = cpus
    return json.loads(json.dumps({**record, "date": date}))  # type: ignore[no-any-return]


def test_targets_are_met_or_missed() -> None:
    assert "| <= 1.02 x met |" in page("# P", [result(101.0)])
    assert "| <= 1.02 x **missed** |" in page("# P", [result(103.0)])


def test_the_newest_result_of_a_machine_is_shown() -> None:
    text = page("# P", [result(105.0), result(101.0, date="2026-11-02"), result(250.0, cpus=16)])
    assert ("101 ms" in text, "105 ms" in text, "250 ms" in text) == (True, False, True)
    assert text.count("\n## ") == 2


def test_quick_results_are_left_out() -> None:
    assert by_machine([result(1.0, quick=True)]) == []


def test_rows_say_what_bounds_them() -> None:
    for row in rows_of("all"):
        assert row.bound.endswith(".")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.json")), ids=lambda path: path.name)
def test_kept_results_have_rows_of_today(path: Path) -> None:
    """And no names of folders or hosts."""
    record = read_results(path)
    assert {row["name"] for row in record["rows"]} <= {row.name for row in rows_of("all")}
    assert not record["settings"]["quick"]
    assert "/root" not in path.read_text(encoding="utf-8")
    assert "/home" not in path.read_text(encoding="utf-8")
