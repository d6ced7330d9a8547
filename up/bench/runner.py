"""Measure rows: randomised blocks in interleaved rounds, and a fresh, pinned process for each cell."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from up.bench.cells import BenchCell, Reading, Row, Settings
from up.bench.machine import Watch, missing
from up.bench.statistics import Outcome
from up.distributed.env import plain_environment
from up.distributed.signals import ending_with_parent
from up.text import count

_CELL_S = 1200.0  # limit of a cell, in seconds
_SEED = 0  # of the order of the cells


def measure(
    rows: Sequence[Row], settings: Settings, *, rounds: int, cpus: Sequence[int], say: Callable[[str], object]
) -> list[Outcome]:
    """Measure every cell once a round and return the values of each row.

    A round measures the rows in random order, and the cells of a row one after the other, in random order, so that whatever
    changes on the machine slows all of them alike.
    """
    draw = random.Random(_SEED)
    outcomes = [Outcome(row) for row in rows]
    for row in rows:
        for cell in row.prepare:
            say(f"preparing {row.name}")
            _, problem = run_cell(cell, _settings_of(row, settings), cpus)
            if problem:
                for outcome in outcomes:
                    outcome.problems |= {each.name: problem for each in outcome.row.cells if outcome.row is row}
    left = rounds * sum(len(row.cells) for row in rows)
    for number in range(rounds):
        for outcome in draw.sample(outcomes, len(outcomes)):
            for cell in draw.sample([*outcome.row.cells], len(outcome.row.cells)):
                say(f"round {number + 1} of {rounds}: {outcome.row.name}, {cell.name} ({count(left, 'process')} left)")
                left -= 1
                _measure_cell(outcome, cell, settings, cpus)
    return outcomes


def _measure_cell(outcome: Outcome, cell: BenchCell, settings: Settings, cpus: Sequence[int]) -> None:
    measured = None
    if cell.name not in outcome.problems:
        watch = Watch()
        measured, problem = run_cell(cell, _settings_of(outcome.row, settings), cpus)
        outcome.others.append(watch.others())
        if problem:
            outcome.problems[cell.name] = problem
    outcome.values.setdefault(cell.name, []).append(math.nan if measured is None else measured.value)
    if measured is not None:
        outcome.extras.setdefault(cell.name, []).append(measured.extra)


def _settings_of(row: Row, settings: Settings) -> Settings:
    threads = settings.threads if row.threads is None else min(row.threads, settings.threads)
    return Settings(**{**asdict(settings), "threads": threads, "device": row.device or settings.device})


def run_cell(cell: BenchCell, settings: Settings, cpus: Sequence[int]) -> tuple[Reading | None, str]:
    """Run a cell in a fresh process on the first ``settings.threads`` of ``cpus``; returns its result or a reason."""
    absent = missing(cell.needs)
    if absent:
        return None, f"{absent} is not installed"
    environment = {**plain_environment(), "OMP_NUM_THREADS": str(settings.threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # peers are installed with bytecode: ours needs it, too
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        asked = {
            "function": cell.function,
            "kwargs": dict(cell.kwargs),
            "is_peer": cell.is_peer,
            "settings": {**asdict(settings), "folder": str(settings.folder)},
            "cpus": [*cpus][: settings.threads],
            "result": str(result),
        }
        command = [sys.executable, "-m", "up.bench.child", json.dumps(asked)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_CELL_S,
                check=False,
                preexec_fn=ending_with_parent(signal.SIGKILL),
            )
        except subprocess.TimeoutExpired:
            return None, f"stopped after {_CELL_S:.0f} s"
        if done.returncode or not result.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return None, lines[-1].strip() if lines else f"ended with exit code {done.returncode}"
        found = json.loads(result.read_text(encoding="utf-8"))
        return Reading(found["value"], found["extra"]), ""
