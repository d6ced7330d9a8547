"""Differences of groups of runs over seeds: Student's t, and no p-value where nothing varies."""

from __future__ import annotations

import pytest

from up.report.seeds import _difference, _differences

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ({0: 50.0, 1: 60.0}, {0: 51.0, 1: 61.0}, "pairs of seeds"),
        ({0: 100 * 1 / 3, 1: 100 * 2 / 3}, {0: 100 * 2 / 3, 1: 100 * 3 / 3}, "pairs of seeds"),  # equal but for rounding
        ({0: 50.0, 1: 50.0}, {2: 51.0, 3: 51.0}, "Welch's t"),
        ({0: 50.0, 1: 50.0}, {0: 50.0, 1: 50.0}, "pairs of seeds"),
    ],
)
def test_equal_changes_have_no_p_value(first: dict[int, float], second: dict[int, float], how: str) -> None:
    assert _difference(first, second)[2:] == (how, None)
    (row,) = _differences({"a": first, "b": second})
    assert row["p"] == "none"
    assert "better" not in row["decision"]
    assert "to" not in row["difference"]  # no interval either


def test_p_values_of_the_others_are_adjusted_for_their_number() -> None:
    groups = {"a": {0: 50.0, 1: 60.0, 2: 55.0}, "b": {0: 51.0, 1: 61.0, 2: 56.0}, "c": {0: 52.0, 1: 61.0, 2: 57.5}}
    alone = {pair: _difference(groups[pair[0]], groups[pair[1]])[3] for pair in ("ab", "ac", "bc")}
    assert alone["ab"] is None
    assert alone["ac"] == pytest.approx(0.05327, abs=1e-5)  # changes 2, 1, 2.5: t = 4.1576 with 2 degrees of freedom
    rows = _differences(groups)
    assert [row["p"] for row in rows] == ["none", f"{2 * alone['ac']:.3g}", f"{alone['bc']:.3g}"]
