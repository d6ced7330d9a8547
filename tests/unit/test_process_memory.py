"""Memory of freed tensors, and how often the operating system is asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from up.build.experiment import load_experiment
from up.build.network import select_device
from up.process_memory import is_glibc

ROOT = Path(__file__).parents[2]
PAGES = 4 * 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # of the blocks of 64 MiB that are counted
COUNT = """
import resource

def fill():
    for size in (64, 48):  # MiB
        b'1' * (size * 2**20)

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEPT = "from up.process_memory import keep_freed_memory; keep_freed_memory()"


def _fresh_pages(before: str, **chosen: str) -> int:
    """Pages that the operating system gives a process that allocates, fills and frees the same blocks again and again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", f"{before}\n{COUNT}"]
    done = subprocess.run(command, cwd=ROOT, env=environment | chosen, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not is_glibc(), reason="other C libraries have no such setting")
def test_freed_memory_is_used_again() -> None:
    assert _fresh_pages("") > PAGES
    assert _fresh_pages(KEPT) < PAGES / 20


def test_a_run_on_a_cpu_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Mock()
    monkeypatch.setattr("up.build.network.keep_freed_memory", kept)
    select_device(load_experiment(ROOT / "configs/cls/quickstart.yaml", ["runtime.device=cpu"]))
    kept.assert_called_once_with()


@pytest.mark.skipif(not is_glibc(), reason="other C libraries have no such setting")
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_variables_of_glibc_choose_otherwise(name: str) -> None:
    assert _fresh_pages(KEPT, **{name: str(2**20)}) > PAGES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(os, "confstr", unknown)
    assert not is_glibc()
