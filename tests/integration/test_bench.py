"""``up bench``: every kind once, in tiny sizes. Nothing is asserted about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.facts import tells
from tests.harness.ranks import Server, start
from tests.harness.refusals import refused
from up.__main__ import main
from up.bench import machine
from up.bench.cells import Reading

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture(autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that all tests here share, and processes that find the package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))


class ForkedCells:
    """As much of ``subprocess`` as cells use: their processes, forked from one that has imported torch."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder

    def run(self, command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "up.bench.child"]
        ranks = start(self.server, self.folder, command[3:], world=1, environment=env, entry="up.bench.child:main")
        (code,) = ranks.wait()
        return subprocess.CompletedProcess(command, code, "", ranks.said)


@pytest.mark.parametrize(
    ("kind", "only"),
    [
        ("step", ["fixed"]),
        *(
            pytest.param(kind, only, marks=pytest.mark.slow)  # a cell is a process, which imports torch
            for kind, only in (
                ("loader", ["crop-500", "cache-500", "workers-500"]),
                ("step", ["kd-cached", "bookkeeping"]),
                ("start", ["first-step"]),
                ("memory", ["once", "worker", "flat"]),
                ("optimizer", ["lamb"]),
                ("predict", ["package"]),
                ("serve", ["package"]),
                ("run", ["resnet18"]),
            )
        ),
    ],
)
def test_a_kind(kind: str, only: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Every cell of the rows gives a number, and the result file has them all; the process of a fast one is forked."""
    if kind == "step" and only == ["fixed"]:
        monkeypatch.setattr("up.bench.runner.subprocess", ForkedCells(server, tmp_path))
    path = tmp_path / "results.json"
    peers = ["--against", "timm,files"] if kind == "loader" else []
    assert main(["bench", kind, "--quick", "--only", ",".join(only), *peers, "--device", "cpu", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert [row["name"] for row in record["rows"]] == [f"{kind}.{name}" for name in only]
    assert {"cpu", "cpus", "instructions", "memory_gb", "system"} <= record["machine"].keys()
    assert {"python", "torch", "torchvision", "timm", "numpy", "pillow"} <= record["versions"].keys()
    for row in record["rows"]:
        for name, cell in row["cells"].items():
            assert "problem" not in cell, (row["name"], name, cell)
            assert cell["values"][0] > 0


@pytest.mark.slow
def test_a_recipe_of_the_users_own(config: Config, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Waiting for data, one worker, and the step with other settings; the run folder is not made."""
    path = tmp_path / "results.json"
    chosen = ["--quick", "--device", "cpu", "--against", "bf16,twice the batch", "--json", str(path)]
    assert main(["bench", "all", "--config", write(config), *chosen]) == 0
    record = json.loads(path.read_text())
    assert [row["name"] for row in record["rows"]] == ["recipe.run", "recipe.worker", "recipe.step"]
    assert [*record["rows"][2]["cells"]] == ["ours", "bf16", "twice the batch"]
    assert all("problem" not in cell for row in record["rows"] for cell in row["cells"].values())
    printed = capsys.readouterr().out
    assert tells(record["advice"][0], "% of the step waits")
    assert all(f"advice: {line}" in printed for line in record["advice"])
    assert not Path(config["saver"]["save_dir"]).exists()


def test_a_busy_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error by default; with ``--force`` the table carries a mark."""
    monkeypatch.setattr(machine.Watch, "others", lambda watch: 64.0)
    monkeypatch.setattr("up.commands.bench._LOOK_S", 0.0)
    assert tells(refused(["bench", "loader"], capsys, tmp_path), "busy", "64.0", "--force")
    monkeypatch.setattr("up.bench.runner.run_cell", lambda cell, settings, cpus: (Reading(1.0), ""))
    assert main(["bench", "step", "--only", "fixed", "--force", "--rounds", "1", "--device", "cpu"]) == 0
    assert "BUSY MACHINE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["kind"]),
        (["lodaer"], ["lodaer"]),
        (["loader", "--seconds", "0"], ["--seconds", "0"]),
        (["loader", "--rounds", "0"], ["--rounds"]),
        (["loader", "--against", "tim"], ["--against", "'tim'", "timm"]),
        (["loader", "--only", "nothing"], ["--only", "nothing"]),
        (["loader", "--json", "/proc/x/y.json"], ["--json", "/proc"]),
        (["loader", "--json", "/proc"], ["--json", "/proc", "is a folder"]),
        (["all", "--config", "none.yaml"], ["none.yaml"]),
    ],
)
def test_mistakes(words: list[str], said: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert tells(refused(["bench", *words, "--quick"], capsys, tmp_path), *said)
