"""Nodes: plain values there and back, and changes that leave the original as it was."""

from __future__ import annotations

import pytest

from tests.harness.facts import facts
from up.config.tree import MappingNode, Mark, ScalarNode, from_plain, set_at, to_plain, walk
from up.errors import ConfigError

MARK = Mark("x", 1)
VALUE = {"a": {"b": [1, {"name": "n", "c": None}]}, 3: True}


def tree() -> MappingNode:
    made = from_plain(VALUE, MARK)
    assert isinstance(made, MappingNode)
    return made


def test_there_and_back() -> None:
    assert to_plain(tree()) == VALUE
    assert len(list(walk(tree()))) == 8


def test_a_change_builds_new_nodes_on_its_way_only() -> None:
    before = tree()
    after = set_at(before, "a.b.n.c", ScalarNode(5, Mark("--opts")), Mark("--opts"))
    assert to_plain(before) == VALUE
    assert to_plain(after) == {"a": {"b": [1, {"name": "n", "c": 5}]}, 3: True}
    assert after.get(3) is before.get(3)


def test_a_number_that_is_a_key() -> None:
    assert to_plain(set_at(tree(), "3", ScalarNode(False, MARK), MARK))[3] is False


def test_keys_that_are_missing() -> None:
    assert tree().get("zz") is None
    assert tree().block("zz").entries == {}
    assert to_plain(set_at(tree(), "x.y.z", ScalarNode(1, MARK), MARK))["x"] == {"y": {"z": 1}}


def test_numbers_too_long_to_be_an_index() -> None:
    with pytest.raises(ConfigError, match=facts("99999999999", "a.b", "2")):
        set_at(tree(), "a.b.99999999999", ScalarNode(1, MARK), MARK)
