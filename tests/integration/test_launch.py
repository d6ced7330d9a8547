"""Launchers, with real processes: ours, torchrun, two hosts; their signals, their death, their restarts."""

from __future__ import annotations

import os
import pty
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.harness.facts import tells
from tests.harness.faulty import (
    SOON_S,
    WORKERS,
    children_of,
    is_alive,
    is_equal,
    left_equal,
    listens,
    status,
    step_reached,
    wait_for,
)
from tests.harness.launched import FORKED, FORKED_TORCHRUN, TWO, UP
from tests.harness.ranks import PATIENCE_S, Cluster, free_port
from tests.harness.runs import times_resumed
from tests.harness.states import checkpoint


@pytest.mark.parametrize(
    ("target", "number", "workers"),
    [("launcher", signal.SIGTERM, 0), ("rank", signal.SIGTERM, 2), ("group", signal.SIGTERM, 2), ("launcher", signal.SIGHUP, 0)],
)
def test_a_request_under_our_launcher(  # type: ignore[no-untyped-def]
    start, run: Path, unbroken: Path, target: str, number: signal.Signals, workers: int
) -> None:
    """Saved on the same step on both ranks, equal to the unbroken run; 75. (``make soak`` does it five times each.)"""
    launched = start(FORKED, WORKERS.format(workers), after=TWO)
    wait_for(lambda: step_reached(run, 2), PATIENCE_S)
    if target == "group":
        os.killpg(launched.pid, number)
        for rank in launched.ranks():  # a scheduler reaches every process of a job, whatever its group
            os.kill(rank, number)
    else:
        os.kill(launched.pid if target == "launcher" else launched.ranks()[1], number)
    assert launched.wait() == 75, launched.said
    found = status(run)
    assert (found["state"], found["exit_code"], found["reason"]) == ("preempted", 75, f"stopped by {number.name}")
    assert checkpoint(run)["step"] == found["step"] >= 2
    assert "Traceback" not in launched.said
    left_equal(run, unbroken, found["step"])


def test_nohup(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """A run that is to outlive its terminal does; the launcher asks for the same list of signals as a rank."""
    launched = start(FORKED, ignored=[signal.SIGHUP])
    wait_for(lambda: step_reached(run, 2), PATIENCE_S)
    os.kill(launched.pid, signal.SIGHUP)
    assert launched.wait() == 0, launched.said
    assert (status(run)["state"], status(run)["step"]) == ("done", 8)


def test_a_terminal_that_closes(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """SIGHUP is a request like any other, and nothing can be shown any more: the run saves and ends all the same."""
    ours, theirs = pty.openpty()
    launched = start(FORKED, "trainer.max_iter=2000", terminal=os.ttyname(theirs), environment={"TERM": "xterm"})
    said = b""
    try:
        while not step_reached(run, 2):
            said += os.read(ours, 1 << 16)
    finally:
        os.close(theirs)
        os.close(ours)
    assert launched.wait() == 75, said.decode(errors="replace")
    assert (status(run)["state"], status(run)["reason"]) == ("preempted", "stopped by SIGHUP")
    assert checkpoint(run)["step"] == status(run)["step"] >= 2


def test_a_second_signal_to_our_launcher(start, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    """A rank stands still, so that nothing can be saved: all end at once, and what was saved before is whole."""
    launched = start(FORKED, WORKERS.format(1), after=TWO, fault="rank=1,step=6,action=hang")
    wait_for(lambda: step_reached(run, 6), PATIENCE_S)
    ranks = launched.ranks()
    family = [*ranks, *(worker for rank in ranks for worker in children_of(rank))]
    os.kill(launched.pid, signal.SIGTERM)
    time.sleep(1.0)
    assert launched.poll() is None
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 143, launched.said
    wait_for(lambda: not any(is_alive(pid) for pid in family))
    assert "Traceback" not in launched.said
    left_equal(run, unbroken, 4)


def test_ctrl_c_under_our_launcher(start, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    launched = start(FORKED, after=TWO)
    wait_for(lambda: step_reached(run, 1), PATIENCE_S)
    os.killpg(launched.pid, signal.SIGINT)
    assert launched.wait() == 130, launched.said
    assert (status(run)["state"], status(run)["exit_code"]) == ("preempted", 130)
    assert "Traceback" not in launched.said
    left_equal(run, unbroken, status(run)["step"])


def test_a_killed_launcher_leaves_no_ranks_behind(start, runs: Cluster, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    """They notice, save on the same step, and end."""
    launched = start(FORKED, "dataset.train.dataloader.kwargs.num_workers=1", "trainer.max_iter=2000", after=TWO)
    wait_for(lambda: step_reached(run, 2), PATIENCE_S)
    ranks = launched.ranks()
    family = [*ranks, *(worker for rank in ranks for worker in children_of(rank))]
    assert len(family) >= 4
    os.kill(launched.pid, signal.SIGKILL)
    wait_for(lambda: not any(is_alive(pid) for pid in family))
    assert (status(run)["state"], status(run)["reason"]) == ("preempted", "the launcher has died")
    assert checkpoint(run)["step"] == status(run)["step"] >= 2


def test_a_killed_rank_is_restarted_and_ends_equal(start, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    """``--max-restarts 1``: the second attempt goes on from the checkpoint, although the command did not say auto_resume."""
    launched = start(FORKED, "saver.auto_resume=false", after=(*TWO, "--max-restarts", "1"), fault="rank=1,step=6,action=kill")
    assert launched.wait() == 0, launched.said
    assert tells(launched.said, "exited", "without", "reporting")
    assert times_resumed(run) == 1
    is_equal(run, unbroken)


def test_a_killed_rank_ends_our_launcher(start, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    launched = start(FORKED, after=TWO, fault="rank=0,step=6,action=kill")
    assert launched.wait() == 75, launched.said
    assert tells(launched.said, "0", "killed", "SIGKILL")
    assert status(run)["state"] == "failed", "written by the rank that is left"
    left_equal(run, unbroken, 4)


def test_bad_input_under_our_launcher_is_one_line(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """Found by the launcher (a wrong key) or by the ranks (no such part): 2, one line, nothing created."""
    for wrong, what in (("trainer.max_epch=3", "max_epch"), ("trainer.optimizer.type=SGDD", "got 'SGDD', expected an optimizer")):
        launched = start(FORKED, wrong, after=TWO)
        assert launched.wait() == 2, launched.said
        assert what in launched.said
        assert len(launched.said.splitlines()) == 1, launched.said
    assert not run.exists()


def test_the_launchers_port_in_use(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launched = start(FORKED, after=(*TWO, "--port", str(port)))
        assert launched.wait() == 2, launched.said
    assert tells(launched.said, f"localhost:{port}", "port")
    assert "Traceback" not in launched.said


def test_torchrun(start, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    """It turns every code of a rank into 1; ``status.json`` keeps the truth."""
    launched = start(FORKED_TORCHRUN)
    wait_for(lambda: step_reached(run, 2), PATIENCE_S)
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() != 0
    assert (status(run)["state"], status(run)["exit_code"]) == ("preempted", 75)
    left_equal(run, unbroken, status(run)["step"])


def test_torchrun_names_the_reason_last(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """Its own traceback cannot be kept from the screen; the root cause below it is the line about the mistake."""
    launched = start(FORKED_TORCHRUN, "trainer.max_epch=3")
    assert launched.wait() == 1
    root_cause = launched.said.split("Root Cause")[1]
    assert "exitcode  : 2" in root_cause
    assert tells(root_cause, "trainer.max_epch", "trainer", "takes")
    assert not run.exists()


def test_two_hosts(start, run: Path, unbroken: Path) -> None:  # type: ignore[no-untyped-def]
    """Two launchers of one rank each, which meet at a port."""
    hosts = ["--launch", "pytorch", "--ng", "1", "--nm", "2", "--rdzv", f"localhost:{free_port()}", "--node-rank"]
    launched = [start(FORKED, after=(*hosts, str(number))) for number in range(2)]
    assert [each.wait() for each in launched] == [0, 0], "\n".join(each.said for each in launched)
    is_equal(run, unbroken)


def test_a_signal_during_the_import(start, runs: Cluster, run: Path) -> None:  # type: ignore[no-untyped-def]
    """Nothing is lost, and nothing is said: the run saves its first state and ends with 75."""
    launched = start(UP)
    wait_for(lambda: listens(launched.pid))
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 75, launched.said
    assert (status(run)["state"], status(run)["step"]) == ("preempted", 0)
    assert checkpoint(run)["step"] == 0
    assert "Traceback" not in launched.said


def test_a_signal_before_there_are_ranks(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """The launcher imports for seconds: a scheduler that takes its place back then is to run the same command again.

    Ctrl-C has the same handler, which tests/unit/distributed/test_signals.py holds, and its code in the test below.
    """
    launched = start(UP, after=TWO)
    wait_for(lambda: listens(launched.pid))
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 75, launched.said
    assert "Traceback" not in launched.said
    assert not run.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_the_ranks_have_just_been_started(start, run: Path, number: signal.Signals) -> None:  # type: ignore[no-untyped-def]
    """Rank 1 does not listen yet and ends by it; the other does not wait for it."""
    waits = {"up.distributed.launch:STARTING_S": 1.0, "up.distributed.signals:GRACE_S": 1.0}
    launched = start(FORKED, WORKERS.format(2), after=TWO, environment={"DEAF": "1"}, waits=waits)
    wait_for(lambda: [*map(listens, launched.ranks())] == [True, False], PATIENCE_S)
    os.kill(launched.pid, number)
    assert launched.wait() == (130 if number == signal.SIGINT else 75), launched.said
    assert "Traceback" not in launched.said


def test_a_signal_while_the_ranks_are_started(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """The launcher's library does not know the ranks yet: they get the signal all the same, and the launcher outlives them."""
    patient = {"up.distributed.launch:STARTING_S": PATIENCE_S, "up.distributed.signals:GRACE_S": PATIENCE_S}
    entry = "tests.harness.launched:asked_to_stop_while_starting"
    launched = start(FORKED, "trainer.max_iter=2000", after=TWO, entry=entry, waits=patient)
    assert launched.wait() == 75, launched.said
    found = status(run)
    assert (found["state"], found["reason"]) == ("preempted", "stopped by SIGTERM")
    assert found["step"] == checkpoint(run)["step"]
    assert not tells(launched.said, "nothing to save")


def test_a_signal_during_the_import_of_the_ranks(start, run: Path) -> None:  # type: ignore[no-untyped-def]
    """With loader workers to come: both save their first state on the same step. Here it waits for the signal, not for torch."""
    entry, patient = "tests.harness.launched:importing_until_asked_to_stop", {"up.distributed.signals:GRACE_S": PATIENCE_S}
    launched = start(FORKED, WORKERS.format(2), after=TWO, entry=entry, waits=patient)
    wait_for(lambda: len(launched.ranks()) == 2 and all(map(listens, launched.ranks())), PATIENCE_S)
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 75, launched.said
    assert (status(run)["state"], status(run)["step"], checkpoint(run)["step"]) == ("preempted", 0, 0)
    assert "Traceback" not in launched.said


def test_time_is_not_lost_waiting(runs: Cluster, run: Path) -> None:
    """A rank that is missing at the start is named after ``runtime.dist.timeout``."""
    begun = time.monotonic()
    started = runs.start("runtime.dist.timeout=3", only=0)
    assert started[0].wait() == 75, started.said
    assert tells(started.said, "2", "within", "3")
    assert time.monotonic() - begun < SOON_S
    assert not run.exists()
