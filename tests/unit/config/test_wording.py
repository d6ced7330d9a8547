"""Values and expectations in words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.facts import tells
from up.config.wording import expected, unknown
from up.text import shown


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("fast", "'fast'"),
        (True, "true"),
        (None, "null"),
        (float("inf"), ".inf"),
        (float("-inf"), "-.inf"),
        (float("nan"), ".nan"),
        (0.001, "0.001"),
        ([1, "a"], "[1, 'a']"),
        ([{}], "a list of 1"),
        ([1] * 100, "a list of 100"),
        ({}, "an empty block"),
        ({"a": 1, "b": 2}, "a block (a, b)"),
    ],
)
def test_got(value: Any, words: str) -> None:
    assert shown(value) == words


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 500)) == 60


def test_expected() -> None:
    assert expected({"type": "int_type"}) == "a whole number"
    assert expected({"type": "invalid_key"}) == "a key that is text"
    assert expected({"type": "less_than", "ctx": {"lt": 2**63}}) == "less than 9223372036854775808"
    assert expected({"type": "multiple_of", "ctx": {"multiple_of": 8}}) == "a multiple of 8"
    assert expected({"type": "literal_error", "ctx": {"expected": "'a', 'b' or 'c'"}}) == "one of a, b, c"
    assert tells(expected({"type": "too_short", "ctx": {"min_length": 1}}), "least", "1", "entry")
    assert expected({"type": "unheard_of", "msg": "Input should be odd"}) == "input should be odd"


def test_unknown() -> None:
    assert tells(unknown("trainer", "epohcs", ["epochs", "lr"]), "trainer", "'epochs'", "epochs")
    assert tells(unknown("plain", "x", [], "argument"), "plain", "argument", "arguments")
