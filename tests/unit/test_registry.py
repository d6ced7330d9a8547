"""Lazy tables and their errors."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from tests.harness.facts import tells
from up.registry import Registry, UnknownName

TABLE = Registry("loss", {"ordered": "collections:OrderedDict", "bce": "no.such.module:Loss"})


def test_resolves_on_use_only() -> None:
    assert TABLE.get("ordered") is OrderedDict
    assert "bce" in TABLE  # although its module cannot be imported
    with pytest.raises(ModuleNotFoundError):
        TABLE.get("bce")


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(UnknownName) as error:
        TABLE.get("bec")
    assert tells(str(error.value), "loss", "'bec'", "'bce'")


def test_without_a_near_name_the_table_is_listed() -> None:
    with pytest.raises(UnknownName) as error:
        Registry("optimizer", {"SGD": "x:y", "LAMB": "x:z"}).get("quantum")
    assert tells(str(error.value), "optimizer", "'quantum'", "optimizer", "LAMB", "SGD")


def test_other_names_are_found_and_suggested() -> None:
    table = Registry("net", {}, others={"resnet50": 50}.get, other_names=lambda: ["resnet50"])
    assert table.get("resnet50") == 50
    assert "resnet50" in table
    assert "resnet51" not in table
    with pytest.raises(UnknownName, match="Did you mean 'resnet50'"):
        table.get("resnet51")


def test_an_extended_copy_leaves_the_original() -> None:
    extended = TABLE.extended({"mine": "collections:Counter", "ordered": "collections:Counter"})
    assert list(extended) == ["bce", "mine", "ordered"]
    assert extended.get("ordered") is not TABLE.get("ordered")
    assert "mine" not in TABLE
