"""Words for people."""

from __future__ import annotations

import pytest

from up.text import count, did_you_mean, duration, near_names, si, some_of


def test_near_names_ignore_case() -> None:
    assert near_names("lamb", ["LAMB", "LARS", "SGD"])[0] == "LAMB"
    assert did_you_mean("xyz", ["LAMB"]) == ""
    assert did_you_mean("xyz", []) == ""


def test_of_names_that_are_equally_near_those_that_begin_alike_come_first() -> None:
    assert near_names("AdamV", ["NAdam", "RAdam", "AdamW", "Adam"])[:2] == ["Adam", "AdamW"]


def test_lists_are_cut() -> None:
    assert some_of(range(3)) == "0, 1, 2"
    assert some_of(range(14), 10) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more"


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "image", "1 image"),
        (1797, "image", "1,797 images"),
        (0, "class", "0 classes"),
        (2, "process", "2 processes"),
        (2, "entry", "2 entries"),
    ],
)
def test_counts(number: int, noun: str, text: str) -> None:
    assert count(number, noun) == text


def test_units_and_durations() -> None:
    assert [si(value) for value in (25_557_032, 4.1e9, 12, 1500)] == ["25.56M", "4.10G", "12", "1.50k"]
    assert [duration(value) for value in (5, 75, 3725)] == ["0:05", "1:15", "1:02:05"]
