"""Plug-in modules: what they add to the tables, and what is said of one that is wrong."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from up.config.plugins import extended, import_plugin, make_importable
from up.errors import UserError
from up.registry import Registry

TABLES = {"loss": Registry("loss", {"ce": "torch.nn:CrossEntropyLoss"})}
_NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module of a new name, which can be imported, and return the name."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    def write(text: str) -> str:
        name = f"plugin_of_tests_{next(_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_module_adds_to_a_table(module: Callable[[str], str]) -> None:
    name = module('TABLES = {"loss": {"own": "torch.nn:L1Loss"}}')
    tables = extended(TABLES, [name])
    assert tables["loss"].get("own").__name__ == "L1Loss"
    assert "ce" in tables["loss"]
    assert tables["loss"].plugins["own"] == name
    assert "own" not in TABLES["loss"]  # the table itself is as it was


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ["no TABLES"]),
        ("TABLES = {'lost': {}}", ["lost", "loss"]),
        ("TABLES = {'loss': ['own']}", ["own", "dict"]),
        ("TABLES = {'loss': {'own': 3}}", ["own", "3"]),
        ("TABLES = {'loss': {'own': 'torch.nn'}}", ["own", "module:Class"]),
        ("TABLES = {'loss': {'own': 'torch.nn:L1Los'}}", ["L1Los", "L1Loss"]),
        ("TABLES = {'loss': {'own': 'no_such_module:X'}}", ["no_such_module"]),
        ("import no_such_module", [":1", "no_such_module"]),
        ("x = 1\n1 / 0", [":2", "ZeroDivisionError"]),
        ("x = (", [":1"]),
    ],
)
def test_a_wrong_module_is_one_line(module: Callable[[str], str], text: str, facts: list[str]) -> None:
    name = module(text)
    with pytest.raises(UserError) as raised:
        extended(TABLES, [name])
    said = str(raised.value)
    assert "\n" not in said
    for fact in (name, *facts):
        assert fact in said


def test_a_path_names_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "plugin_by_path.py").write_text("TABLES = {}")
    assert import_plugin(str(tmp_path / "plugin_by_path.py")).__name__ == "plugin_by_path"
    assert import_plugin(str(tmp_path / "plugin_by_path")).__name__ == "plugin_by_path"
    with pytest.raises(UserError, match=r"plugin_by_path\.py"):  # the near name
        import_plugin(str(tmp_path / "plugin_by_pat.py"))


def test_the_folder_of_the_configuration_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    make_importable(tmp_path)
    make_importable(tmp_path)
    assert sys.path[-1] == str(tmp_path.resolve())
    assert sys.path.count(str(tmp_path.resolve())) == 1
