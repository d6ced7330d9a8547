"""Forty faults drawn at random, on two ranks: whatever befalls the run, the same command finishes equal in the end.

``make soak``. ``UP_SOAK_SEED`` draws forty others, ``UP_SOAK_DRAWS`` another number of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.faulty import GO_ON, WORKERS, is_equal, status
from tests.harness.ranks import Cluster

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("UP_SOAK_SEED", "0"))
DRAWS = int(os.environ.get("UP_SOAK_DRAWS", "40"))
LISTED = {0, 1, 2, 3, 74, 75, 130, 143, -signal.SIGKILL}
FROM_INSIDE = ("term", "int", "usr1", "kill", "hang", "nan", "error", "kill_worker", "disk_full", "no_folder")
FROM_OUTSIDE = ("SIGTERM", "SIGINT", "SIGKILL")
TIMEOUT = "runtime.dist.timeout=5"


@dataclass(frozen=True)
class Draw:
    """One fault."""

    what: str
    rank: int
    step: int
    at: str
    workers: int
    after_s: float  # of one from outside

    @classmethod
    def of(cls, number: int) -> Draw:
        draw = random.Random(1000 * SEED + number)
        what = draw.choice(FROM_INSIDE + FROM_OUTSIDE)
        return cls(
            what,
            draw.randrange(2),
            draw.randrange(9),
            draw.choice(("update", "update", "evaluation", "save")),
            draw.randrange(3),
            draw.uniform(0.0, 3.0),
        )

    def __str__(self) -> str:
        where = f"after {self.after_s:.2f} s" if self.what in FROM_OUTSIDE else f"step {self.step} {self.at}"
        return f"{self.what} rank {self.rank} {where} workers {self.workers}"


@pytest.mark.parametrize("number", range(DRAWS), ids=lambda number: str(Draw.of(number)).replace(" ", "-"))
def test_the_invariant(runs: Cluster, run: Path, unbroken: Path, number: int) -> None:
    draw = Draw.of(number)
    workers = WORKERS.format(draw.workers)
    inside = f"rank={draw.rank},step={draw.step},at={draw.at},action={draw.what}" if draw.what in FROM_INSIDE else ""
    started = runs.start(GO_ON, TIMEOUT, workers, fault=inside)
    if not inside:
        time.sleep(draw.after_s)
        if started[draw.rank].poll() is None:
            started[draw.rank].send(getattr(signal, draw.what))
    if draw.what == "hang":
        started[1 - draw.rank].wait()  # the other one ends at the timeout; a person or a launcher ends the one that hangs
        started.kill()
    codes = started.wait()
    assert set(codes) <= LISTED, started.said
    if codes != [0, 0]:
        # The same command: once more is enough, for nothing befalls it this time.
        runs.run(GO_ON, TIMEOUT, workers)
    is_equal(run, unbroken)
    assert status(run)["exit_code"] == 0
