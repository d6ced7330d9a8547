"""The processors and the memory that a process may use: of the machine, and by both versions of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from up import processors
from up.processors import available_memory, available_processors

pytestmark = pytest.mark.unit

SECOND = {"job/cpu.max": "150000 100000", "cpu.max": "max 100000"}
FIRST = {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}


def mount(own: str | None, files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = folder / "cgroup"
    if own is not None:
        groups.write_text(own)
    for name, text in files.items():
        path = folder / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.setattr(processors, "_OWN_GROUPS", groups)
    monkeypatch.setattr(processors, "_MOUNTED", folder / "mounted")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job\n", SECOND, 2),
        ("0::/job/task\n", SECOND, 2),  # the group above limits it, too
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),  # as a container sees its own group
        ("0::/elsewhere\n", {"cpu.max": "max 100000"}, 8),
        ("0::/job\n", {"job/cpu.max": "1600000 100000"}, 8),  # more than the affinity allows
        ("5:memory:/job\n4:cpu,cpuacct:/job\n", FIRST, 3),
        ("4:cpu,cpuacct:/job\n", {**FIRST, "cpu,cpuacct/job/cpu.cfs_quota_us": "-1"}, 8),
        ("4:cpu,cpuacct:/docker/id\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("0::/job\n", {"job/cpu.max": "nonsense"}, 8),
        (None, {}, 8),
    ],
)
def test_quotas(own: str | None, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(own, files, tmp_path, monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_processors() == expected


def test_quotas_are_read_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The affinity is read in each call: a process may change its own."""
    groups, quota = tmp_path / "cgroup", tmp_path / "cpu.max"
    groups.write_text("0::/\n")
    quota.write_text("200000 100000\n")
    monkeypatch.setattr(processors, "_OWN_GROUPS", groups)
    monkeypatch.setattr(processors, "_MOUNTED", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_processors() == 2
    quota.unlink()
    assert available_processors() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert available_processors() == 1


CACHED = "anon 10\nactive_file 300\ninactive_file 500\nslab 7"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job\n", {"job/memory.max": "1000", "job/memory.current": "900", "job/memory.stat": "anon 900"}, 100),
        ("0::/job\n", {"job/memory.max": "1000", "job/memory.current": "1000", "job/memory.stat": CACHED}, 800),  # most of it files
        ("0::/job/task\n", {"job/memory.max": "1000", "job/memory.current": "0", "job/memory.stat": "anon 0"}, 1000),
        ("0::/\n", {"memory.max": "max", "memory.current": "900", "memory.stat": "anon 900"}, 5120),
        (
            "5:memory:/job\n4:cpu,cpuacct:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "1000",
                "memory/job/memory.usage_in_bytes": "900",
                "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50",
            },
            350,
        ),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "9"}, 5120),
        (None, {}, 5120),
    ],
)
def test_memory(own: str | None, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(own, files, tmp_path, monkeypatch)
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:       9 kB\nMemAvailable:   5 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(processors, "_MEMORY", machine)
    assert available_memory() == expected


def test_a_machine_that_does_not_tell_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_MEMORY", tmp_path / "meminfo")
    mount(None, {}, tmp_path, monkeypatch)
    assert available_memory() == 4_000_000_000
