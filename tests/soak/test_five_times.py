"""Requests to stop under our launcher, SIGTERM five times to each target and SIGUSR1 once: saved on one step by both ranks, 75, and
the rerun ends equal to the run that nothing befell."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness.faulty import WORKERS, finishes_equal, status, step_reached, wait_for
from tests.harness.launched import FORKED, TWO
from tests.harness.ranks import PATIENCE_S, Cluster
from tests.harness.states import checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("time", "number"), [*((time, signal.SIGTERM) for time in range(5)), (5, signal.SIGUSR1)])
@pytest.mark.parametrize("target", ["launcher", "rank", "group"])
def test_stopped_and_run_again(  # type: ignore[no-untyped-def]
    start, runs: Cluster, run: Path, unbroken: Path, target: str, number: signal.Signals, time: int
) -> None:
    step, workers = 1 + time % 3, WORKERS.format(2 * (time % 2))
    launched = start(FORKED, workers, after=TWO)
    wait_for(lambda: step_reached(run, step), PATIENCE_S)
    if target == "group":
        for pid in [launched.pid, *launched.ranks()]:
            os.killpg(os.getpgid(pid), number)
    else:
        os.kill(launched.pid if target == "launcher" else launched.ranks()[time % 2], number)
    assert launched.wait() == 75, launched.said
    found = status(run)
    assert (found["state"], found["exit_code"]) == ("preempted", 75)
    assert found["reason"].startswith("stopped by SIG")
    assert checkpoint(run)["step"] == found["step"] >= step
    assert launched.said.count("saved ") - launched.said.count("ckpt_s4") <= 1, "the ranks save once, on the same step"
    assert "Traceback" not in launched.said
    finishes_equal(runs, run, unbroken, workers)
