"""The load of other processes from /proc/stat, and the refusal of a busy machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.harness.facts import facts
from up.bench import machine
from up.bench.machine import Watch, busy_seconds, description, is_busy, missing, require_idle, versions
from up.errors import UserError

TICKS = os.sysconf("SC_CLK_TCK")


def stat(path: Path, *busy: float) -> Path:
    """A /proc/stat whose CPUs were busy for these seconds: half in user time, half given to other machines."""
    lines = [f"cpu{cpu} {int(s * TICKS / 2)} 0 0 99999 7 0 0 {int(s * TICKS / 2)} 0 0" for cpu, s in enumerate(busy)]
    path.write_text("\n".join(["cpu 1 1 1 1 1 1 1 1 0 0", *lines, "intr 5", ""]))
    return path


def test_busy_seconds_of_each_cpu(tmp_path: Path) -> None:
    assert busy_seconds(stat(tmp_path / "stat", 10, 30)) == {0: 10.0, 1: 30.0}
    assert busy_seconds(tmp_path / "absent") == {}


def test_others_are_what_this_process_did_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(0.0, 100.0), (10.0, 104.0)])  # wall, own
    now = [next(times)]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0][0])
    monkeypatch.setattr(machine, "own_seconds", lambda: now[0][1])
    watch = Watch(stat(tmp_path / "stat", 10, 10))
    now[0] = next(times)
    stat(tmp_path / "stat", 20, 13)
    assert watch.others() == pytest.approx(0.9)


def test_the_idlest_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    watch = Watch(stat(tmp_path / "stat", 0, 0, 0))
    stat(tmp_path / "stat", 5, 0, 1)
    assert watch.idlest(2) == [1, 2]


def test_a_busy_machine_is_an_error_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert not is_busy(0.19)
    require_idle(0.19, force=False)
    with pytest.raises(UserError, match=facts("1.3 of 2 CPUs", "--force")):
        require_idle(1.3, force=False)
    require_idle(1.3, force=True)


def test_the_description_names_no_host_and_no_folder() -> None:
    text = json.dumps([description(), versions()])
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert "torch" in versions()


def test_missing_libraries() -> None:
    assert missing(["torch", "timm"]) == ""
    assert missing(["torch", "no-such-library"]) == "no-such-library"
