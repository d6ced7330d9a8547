"""From a YAML file to an experiment: tables, plug-ins, and every problem at once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.harness.plugin import declare
from tests.harness.tiny import load_record
from up.build.experiment import all_tables, find_task, missing_files
from up.errors import ConfigError, Problem, UserError
from up.types import Record

PLUGIN = """
from up.engine.hooks import Hook

TABLES = {"hook": {"counter": "counter_of_tests:Counter"}}

class Counter(Hook):
    def __init__(self, *, every: int = 5) -> None:
        self.every = every
"""


def test_every_part_has_a_table(record: Record, written: Path, tmp_path: Path) -> None:
    experiment = load_record(record, written)
    assert experiment.task.name == "cls"
    assert experiment.folder == tmp_path / "run"
    assert "resnet_custom" in experiment.tables["backbone"]
    assert not list(missing_files(experiment))


def test_all_problems_at_once_each_with_its_line(record: Record, written: Path) -> None:
    record["net"][0]["type"] = "resnet_costum"
    record["net"][1]["kwargs"]["num_clases"] = 3
    record["trainer"]["optimizer"]["kwargs"]["momentun"] = 0.9
    with pytest.raises(ConfigError) as raised:
        load_record(record, written)
    found = raised.value.problems
    assert len(found) == 3
    assert all(problem.file == str(written) and problem.line for problem in found)
    for name in ("resnet_custom", "num_classes", "momentum"):  # what was probably meant
        assert any(name in str(problem) for problem in found)


def test_a_plugin_module_beside_the_configuration(record: Record, written: Path) -> None:
    (written.parent / "counter_of_tests.py").write_text(PLUGIN)
    record["runtime"]["plugins"] = ["counter_of_tests"]
    record["hooks"] = [{"type": "counter", "kwargs": {"every": 2}}]
    experiment = load_record(record, written)
    hook = experiment.build(experiment.config.hooks[0], "hook")
    assert (type(hook).__name__, hook.every) == ("Counter", 2)


def test_unknown_task_and_missing_files(record: Record, written: Path) -> None:
    with pytest.raises(UserError, match="cls"):
        find_task("clss")
    record["dataset"]["train"]["dataset"]["kwargs"]["meta_file"] = "nowhere.txt"
    keys = [problem.key for problem in missing_files(load_record(record, written))]
    assert keys == ["dataset.train.dataset.kwargs.meta_file"]


def test_distillation_of_a_task_is_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    seg = object()
    point = SimpleNamespace(name="seg")
    monkeypatch.setattr("up.build.experiment.load_task", lambda found: seg if found is point else None)
    monkeypatch.setattr("up.build.experiment.tasks_declared", lambda folders: {"seg": point})
    assert find_task("seg") is find_task("kd_seg") is seg
    assert find_task("kd_cls") is find_task("cls")


def test_a_task_that_is_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that was searched before: what it declares is read once for each of its states."""
    monkeypatch.syspath_prepend(str(tmp_path))
    os.utime(tmp_path, (1, 1))
    with pytest.raises(UserError, match="later"):
        find_task("later")
    declare(tmp_path, "later", "module_of_later:LATER")
    with pytest.raises(UserError, match="module_of_later"):
        find_task("later")


def test_modules_of_the_environment_add_parts_too(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (written.parent / "counter_of_tests.py").write_text(PLUGIN)
    monkeypatch.setenv("PLUGINPATH", "counter_of_tests")
    monkeypatch.syspath_prepend(str(written.parent))
    assert "counter" in all_tables(find_task("cls"), [])["hook"]


def test_places_come_from_the_block(record: Record, written: Path) -> None:
    experiment = load_record(record, written)
    with pytest.raises(UserError) as raised, experiment.placing("net.1"):
        raise UserError("too wide")
    assert (raised.value.file, raised.value.line is not None) == (str(written), True)
    experiment.raise_if_any([])
    with pytest.raises(ConfigError, match="dataset"):
        experiment.raise_if_any([Problem("is wrong", key="dataset.train")])
