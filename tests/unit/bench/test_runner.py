"""Rounds, failures and results, with processes that are not started."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.facts import tells
from tests.harness.faulty import is_alive, wait_for
from up.bench import runner
from up.bench.cells import OURS, BenchCell, Reading, Row, Settings
from up.bench.kinds import KINDS, chosen, rows_of
from up.bench.results import as_record, outcome_of, read_results
from up.bench.statistics import Outcome
from up.distributed.env import let_idle_threads_sleep, plain_environment
from up.errors import UserError
from up.registry import resolve

SETTINGS = Settings(Path("images"), threads=2)
ROWS = [
    Row("a.one", "one", "ms", [BenchCell(OURS, "m:ours"), BenchCell("bare", "m:bare")], threads=1),
    Row(
        "a.two",
        "two",
        "images/s",
        [BenchCell(OURS, "m:ours"), BenchCell("timm", "m:timm")],
        prepare=[BenchCell("files", "m:files")],
    ),
]


def measured(monkeypatch: pytest.MonkeyPatch, *, fails: str = "", rounds: int = 3) -> tuple[list[Outcome], list[tuple[str, int]]]:
    ran: list[tuple[str, int]] = []

    def run_cell(cell: BenchCell, settings: Settings, cpus: list[int]) -> tuple[Reading | None, str]:
        ran.append((cell.name, settings.threads))
        return (None, "it broke") if cell.name == fails else (Reading(float(len(ran)), {"wait": 0.5}), "")

    monkeypatch.setattr(runner, "run_cell", run_cell)
    return runner.measure(ROWS, SETTINGS, rounds=rounds, cpus=[0, 1], say=lambda line: None), ran


def test_every_cell_runs_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, two), ran = measured(monkeypatch)
    assert [len(values) for outcome in (one, two) for values in outcome.values.values()] == [3, 3, 3, 3]
    assert ran[0] == ("files", 2)
    assert {threads for name, threads in ran if name == "bare"} == {1}
    assert one.extra(OURS, "wait") == 0.5


def test_blocks_are_shuffled_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ran = measured(monkeypatch, rounds=8)
    names = [name for name, _ in ran[1:]]
    blocks = [tuple(names[at : at + 2]) for at in range(0, len(names), 2)]
    assert all(OURS in block for block in blocks)
    assert len(set(blocks)) == 4  # both orders of both rows


def test_a_cell_that_fails_is_not_repeated_and_disturbs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, two), ran = measured(monkeypatch, fails="bare")
    assert [name for name, _ in ran].count("bare") == 1
    assert one.problems == {"bare": "it broke"}
    assert math.isnan(one.values["bare"][2])
    assert one.of(OURS) is not None
    assert two.problems == {}


def test_images_that_cannot_be_made_fail_their_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (one, two), _ = measured(monkeypatch, fails="files")
    assert two.problems == {OURS: "it broke", "timm": "it broke"}
    assert one.problems == {}


def test_a_peer_that_is_not_installed_says_so() -> None:
    cell = BenchCell("lightning", "up.bench.step:ours", needs=["no-such-library"])
    reading, reason = runner.run_cell(cell, SETTINGS, [0])
    assert reading is None
    assert tells(reason, "no-such-library", "installed")


def test_peers_run_without_the_variables_that_this_package_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    before = {name: value for name, value in os.environ.items() if name not in ours}
    monkeypatch.setattr(os, "environ", dict(before))
    let_idle_threads_sleep()  # as the command does, from which cells inherit
    assert plain_environment() == before
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    told: list[tuple[dict[str, str], bool]] = []

    def note(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        told.append((env, json.loads(command[-1])["is_peer"]))
        return subprocess.CompletedProcess(command, 1, "", "not run")

    monkeypatch.setattr(subprocess, "run", note)
    for is_peer in (True, False):
        runner.run_cell(BenchCell("cell", "m:f", is_peer=is_peer), SETTINGS, [0])
    compiled = {name: value for name, value in before.items() if name != "PYTHONDONTWRITEBYTECODE"}  # all as pip installs them
    assert told == [({**compiled, "OMP_NUM_THREADS": "2"}, is_peer) for is_peer in (True, False)]  # ours sets the others itself


def test_a_cell_ends_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    cell, noted = tmp_path / "cell", tmp_path / "pid"
    cell.write_text(f"#!/bin/sh\necho $$ > {noted}.new\nmv {noted}.new {noted}\nexec sleep 60\n")
    cell.chmod(0o755)
    lines = [
        "import sys",
        "from pathlib import Path",
        "from up.bench.cells import BenchCell, Settings",
        "from up.bench.runner import run_cell",
        f"sys.executable = {str(cell)!r}",
        "run_cell(BenchCell('sleeps', 'module:function'), Settings(Path()), [0])",
    ]
    benchmark = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: noted.exists() or benchmark.poll() is not None)
    benchmark.kill()
    assert noted.exists(), benchmark.communicate()[1]
    pid = int(noted.read_text())
    wait_for(lambda: not is_alive(pid))
    benchmark.communicate()


def test_results_survive_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (one, two), _ = measured(monkeypatch, fails="bare")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(as_record([one, two], SETTINGS, rounds=3, gpu=None)))
    record = read_results(path)
    restored = outcome_of(record["rows"][0], ROWS[0])
    assert restored.values == {OURS: one.values[OURS], "bare": pytest.approx([math.nan] * 3, nan_ok=True)}
    assert restored.problems == one.problems
    assert record["settings"]["rounds"] == 3
    assert record["advice"] == []


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "[]"])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json"):
        read_results(path)


def test_rows_have_names_of_their_own_and_functions_that_exist() -> None:
    rows = rows_of("all")
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.name.split(".")[0] in KINDS
        assert row.cells[0].name == OURS
        assert {target.against for target in row.targets} <= {"", *(cell.name for cell in row.cells)}
        assert all(callable(resolve(cell.function)) for cell in (*row.cells, *row.prepare))


def test_choice_of_rows() -> None:
    names = [row.name for row in chosen(rows_of("loader"), device="cpu", only=["crop"], against=["timm"])]
    assert names == ["loader.crop-500", "loader.crop-2000"]
    assert not any(row.device == "cuda" for row in chosen(rows_of("step"), device="cpu", only=[], against=[]))
    with pytest.raises(UserError, match="--against"):
        chosen(rows_of("loader"), device="cpu", only=[], against=["tim"])
    with pytest.raises(UserError, match="--only"):
        chosen(rows_of("loader"), device="cpu", only=["nothing"], against=[])
