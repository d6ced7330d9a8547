"""Medians, ratios of rounds, targets, and the table that shows them."""

from __future__ import annotations

import math

import pytest

from up.bench.cells import OURS, BenchCell, Row, Target
from up.bench.statistics import Outcome, spread
from up.bench.table import cells_of, verdict


def outcome(*targets: Target, unit: str = "ms", **values: list[float]) -> Outcome:
    cells = [BenchCell(name, "up.bench.step:ours") for name in values]
    return Outcome(Row("step.x", "a step", unit, cells, targets), {name: [*each] for name, each in values.items()})


def test_a_spread_is_a_median_with_its_ends() -> None:
    found = spread([3.0, 1.0, math.nan, 10.0])
    assert found is not None
    assert found == (3.0, 1.0, 10.0, 3)
    assert spread([math.nan]) is None


def test_ratios_are_of_one_round() -> None:
    """Rounds in which the whole machine was slower change the medians, and not the ratio."""
    found = outcome(ours=[1.0, 2.0, 30.0], bare=[2.0, 4.0, 60.0]).ratio("bare")
    assert found is not None
    assert (found.median, found.least, found.most) == (0.5, 0.5, 0.5)


def test_a_round_in_which_a_cell_failed_is_left_out() -> None:
    found = outcome(ours=[1.0, 2.0], bare=[math.nan, 1.0])
    assert found.ratio("bare") == (2.0, 2.0, 2.0, 1)
    assert found.difference("bare") == (1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(1.1, "at most", "bare"), True),
        (Target(1.0, "at most", "bare"), False),
        (Target(1.0, "at least", "bare"), True),
        (Target(0.4, "at most", "bare", "difference"), False),
        (Target(0.6, "at most", "bare", "difference"), True),
        (Target(5.0, "at most"), False),
        (Target(6.0, "at most"), True),
    ],
)
def test_targets(target: Target, met: bool) -> None:
    found = outcome(target, ours=[5.5], bare=[5.0])
    reached = found.compared(target)
    assert reached is not None
    assert target.is_met(reached.median) is met
    assert ("met" in verdict(found, target).split(": ")[1].split(",")) is met


def test_the_table_has_a_line_a_cell() -> None:
    found = outcome(Target(1.02, "at most", "bare"), ours=[5.5, 5.7], bare=[5.0, 5.0], timm=[math.nan, math.nan])
    found.problems["timm"] = "timm is not installed"
    ours, bare, timm = cells_of([found])
    assert ours[:4] == ("step.x: a step", OURS, "5.6 ms", "5.5 to 5.7")
    assert bare[:3] == ("", "bare", "5 ms")
    assert bare[4].startswith("1.12 ")
    assert "missed" in bare[5]
    assert timm[3] == "timm is not installed"


def test_large_values_have_no_decimals() -> None:
    assert cells_of([outcome(unit="images/s", ours=[1234.56])])[0][2] == "1,235 images/s"


def test_peers_that_are_not_asked_for_are_left_out() -> None:
    cells = [BenchCell(name, "x:y") for name in (OURS, "timm", "bare")]
    row = Row("a", "a", "ms", cells, [Target(1, "at most"), Target(1, "at most", "timm"), Target(1, "at most", "bare")])
    assert [cell.name for cell in row.against(["bare"]).cells] == [OURS, "bare"]
    assert [target.against for target in row.against(["bare"]).targets] == ["", "bare"]
    assert row.against([]) == row
