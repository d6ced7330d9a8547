"""Requests to stop by signals, and the end of ranks that would wait forever.

- The first signal is a request: all ranks save on the same step and end. A second signal ends the process at once (``listening``).
- The death of the launcher is a request too, and ends the rank ``GRACE_S`` later (``watch_parent``).
- A rank that waits for others to join ends ``GRACE_S`` after a request: they may have ended by the same signal (``stoppable``).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

LAUNCHER_PID = "UP_LAUNCHER_PID"  # set by our own launcher, which may die before this process watches it
GRACE_S = 7.0  # to save and end after the launcher died
_PERIOD_S = 0.5
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_NO_MORE = 0  # not a signal number
_PR_SET_PDEATHSIG = 1
_SAME_REQUEST_S = 0.5  # a scheduler and a launcher may both forward the same signal


class StopRequest:
    """Request to save and stop, true after the first SIGTERM, SIGUSR1, SIGHUP (a terminal that closes) or Ctrl-C."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason = ""
        self._first: tuple[int, float] | None = None  # signal and time
        self._is_over = False

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def is_interrupt(self) -> bool:
        """Whether the signal was Ctrl-C."""
        return self.signal == signal.SIGINT

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """Record a signal; the handler of the main thread, which runs when that thread next runs Python."""
        if self.signal is None and not self._is_over:
            self.reason = f"stopped by {signal.Signals(number).name}"
            self.signal = signal.Signals(number)

    def count(self, number: int) -> None:
        """Record a signal at once, whatever the main thread waits for; a second request ends the process."""
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
        elif (number != self._first[0] or now - self._first[1] > _SAME_REQUEST_S) and not self._is_over:
            os._exit(128 + number)
        self.note(number)

    def ask_because(self, reason: str) -> None:
        """Request a stop for another reason than a signal."""
        if self.signal is None:
            self.signal, self.reason = signal.SIGTERM, reason

    def over(self) -> None:
        """Ignore signals from here on: the result is being written."""
        self._is_over = True


def requests() -> list[signal.Signals]:
    """List the signals that request a stop; not SIGHUP if ``nohup`` makes the process ignore it."""
    return [number for number in _ASK if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call ``handler`` for requests to stop while the block runs; the previous handlers are restored afterwards."""
    previous = {number: signal.signal(number, handler) for number in requests()}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Record requests to stop while the block runs.

    Python runs a handler between two instructions of the main thread, which may be in an operation that waits for
    another rank. So a thread reads the signals from a pipe, and ends the process at the second.
    """
    request = StopRequest()
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    thread = threading.Thread(target=_pass_on, args=(source, request), name="up-signals", daemon=True)
    thread.start()
    previous_sink = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    try:
        with handled(request.note):
            yield request
    finally:
        signal.set_wakeup_fd(previous_sink)
        os.write(sink, bytes([_NO_MORE]))  # loader workers hold the pipe open, so closing it would not be noticed
        thread.join()
        os.close(sink)
        os.close(source)


def _pass_on(source: int, request: StopRequest) -> None:
    while _NO_MORE not in (received := os.read(source, 64)):
        for number in received:
            if number in _ASK:
                request.count(number)


def watch_parent(stop: StopRequest, environment: Mapping[str, str]) -> threading.Thread | None:
    """Start a thread that watches the launcher, if a launcher started this process.

    When the parent process changes, the rank is requested to stop, as by SIGTERM: all ranks save on the same step. If it
    still runs ``GRACE_S`` later (in an operation that waits for a rank that ended), it ends at once. A process that was started
    by hand may outlive the shell.
    """
    if not any(name in environment for name in (LAUNCHER_PID, *_LAUNCHERS)):
        return None
    parent = int(environment.get(LAUNCHER_PID, os.getppid()))
    thread = threading.Thread(target=_watch, args=(parent, stop), name="up-watchdog", daemon=True)
    thread.start()
    return thread


def _watch(parent: int, stop: StopRequest) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD_S)
    stop.ask_because("the launcher has died")
    time.sleep(GRACE_S)
    _give_up(f"the launcher has died, and this rank could not end in order within {GRACE_S:g} s")


@contextmanager
def stoppable(stop: StopRequest) -> Iterator[None]:
    """Wait in the block for the other ranks to join, when there is nothing to save yet.

    They may have ended before, by the same signal: after a request to stop the block has ``GRACE_S`` left, whatever library it
    waits in, then the process ends.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_wait, args=(stop, is_over), name="up-join", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _wait(stop: StopRequest, is_over: threading.Event) -> None:
    while not is_over.wait(_PERIOD_S):
        if stop and not is_over.wait(GRACE_S):
            _give_up(f"{stop.reason} before all ranks had joined: run the same command again.")


def _give_up(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(75)


def end_process(code: int) -> NoReturn:
    """End this process with ``code`` without waiting for the process group.

    A launcher that sees one rank end signals the others, and a regular exit waits for threads of peers that ended.
    """
    for number in _ASK:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # the terminal may be closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def end_with_parent(number: signal.Signals, libc: ctypes.CDLL | None = None) -> None:
    """Let the kernel send this process a signal when the thread that started it ends, which a process that waits does not notice.

    Does nothing where the kernel is not Linux.
    """
    if sys.platform == "linux":
        (libc or ctypes.CDLL(None)).prctl(_PR_SET_PDEATHSIG, number)


def ending_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a ``preexec_fn`` of a child process: the child gets a signal when this process ends, even if it is killed."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        end_with_parent(number, libc)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return arrange
