"""Requests to stop."""

from __future__ import annotations

import os
import signal
import time

import pytest

from up.distributed.failures import Vote
from up.distributed.signals import StopRequest, handled, listening, requests


def wait_until_asked(request: StopRequest) -> None:
    end = time.monotonic() + 30
    while not request and time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "vote", "code"),
    [(signal.SIGTERM, Vote.STOP, 75), (signal.SIGUSR1, Vote.STOP, 75), (signal.SIGINT, Vote.INTERRUPT, 130)],
)
def test_a_signal_becomes_a_vote(number: signal.Signals, vote: Vote, code: int) -> None:
    before = signal.getsignal(number)
    with listening() as request:
        assert Vote.for_request(request) is Vote.GO
        os.kill(os.getpid(), number)
        wait_until_asked(request)
        assert Vote.for_request(request) is vote
        assert (vote.exit_code, request.reason) == (code, f"stopped by {number.name}")
    assert signal.getsignal(number) is before


def test_a_terminal_that_closes_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in requests()
        with handled(lambda number, frame: None):  # of the launcher too
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in requests()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_same_signal_twice_in_a_moment_is_one_request() -> None:
    with listening() as request:
        for _ in range(2):  # as a scheduler and a launcher send it
            os.kill(os.getpid(), signal.SIGTERM)
        wait_until_asked(request)
        time.sleep(0.1)
        assert request.signal is signal.SIGTERM


def test_signals_after_the_end_change_nothing() -> None:
    with listening() as request:
        request.over()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert not request


def second_signal(seconds: float) -> int:
    """The exit code of a process that gets a second signal ``seconds`` after the first, while it waits for something."""
    pid = os.fork()
    if pid == 0:
        with listening() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until_asked(request)
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_second_signal_ends_the_process_at_once() -> None:
    assert second_signal(0.0) == 130
