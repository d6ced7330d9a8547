"""When something is due."""

from __future__ import annotations

import pytest

from up.engine.every import AnyOf, Every


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (Every(period=3, start=0, total=10), [3, 6, 9, 10]),
        (Every(period=3, start=6, total=10), [6, 9, 10]),
        (Every(period=0, start=0, total=4), [4]),
        (Every(period=5, start=0, total=5), [5]),
        (Every(period=2, start=100, total=7), [7]),
    ],
)
def test_due(every: Every, due: list[int]) -> None:
    assert [step for step in range(1, every.total + 1) if every.is_due(step)] == due


def test_due_by_one_of_several() -> None:
    either = AnyOf([Every(period=4, start=0, total=10), Every(period=3, start=6, total=10)])
    assert [step for step in range(1, 11) if either.is_due(step)] == [4, 6, 8, 9, 10]
