"""Requests to stop, and the end of ranks that would wait without end.

- The first signal asks: all ranks save on the same step and end. A second one ends the process at once (``listening``).
- A launcher that is gone asks as a signal does, and ends the rank ``GRACE_S`` later (``watch_parent``).
- A rank that waits for others to join ends ``GRACE_S`` after a request: they may have ended by the same signal (``stoppable``).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

LAUNCHER_PID = "UP_LAUNCHER_PID"  # set by our own launcher, which may die before this process has begun to watch
GRACE_S = 7.0  # to save and leave, once the launcher is gone
_PERIOD_S = 0.5
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_NO_MORE = 0  # is no signal
_SAME_REQUEST_S = 0.5  # a scheduler and a launcher may both pass on the one signal that they got


class StopRequest:
    """Set by the first SIGTERM, SIGUSR1, SIGHUP (of a terminal that closes) or Ctrl-C.

    A second one ends the process at once, without a save.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason = ""
        self._first: tuple[int, float] | None = None  # signal and time
        self._is_over = False

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def is_interrupt(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.signal == signal.SIGINT

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal has come; the handler of the main thread, which runs when that next runs Python."""
        if self.signal is None and not self._is_over:
            self.reason = f"stopped by {signal.Signals(number).name}"
            self.signal = signal.Signals(number)

    def count(self, number: int) -> None:
        """A signal has come, whatever the main thread is waiting for; a second request ends the process."""
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
        elif (number != self._first[0] or now - self._first[1] > _SAME_REQUEST_S) and not self._is_over:
            os._exit(128 + number)
        self.note(number)

    def ask_because(self, reason: str) -> None:
        """Ask to stop for another reason than a signal."""
        if self.signal is None:
            self.signal, self.reason = signal.SIGTERM, reason

    def over(self) -> None:
        """From here on signals change nothing: the last word is being written."""
        self._is_over = True


def requests() -> list[signal.Signals]:
    """The signals that ask to stop; not SIGHUP where ``nohup`` has seen to it that the process outlives its terminal."""
    return [number for number in _ASK if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Handle the signals while the block runs; the previous handlers return afterwards.

    Python runs a handler between two instructions of the main thread, which may stand in an operation that waits for
    another rank. So a thread reads from a pipe which signals have come, and ends the process at the second.
    """
    request = StopRequest()
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    thread = threading.Thread(target=_pass_on, args=(source, request), name="up-signals", daemon=True)
    thread.start()
    previous_sink = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, request.note) for number in requests()}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
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
    """Watch over the launcher, if a launcher started this process; returns the thread that does.

    When its parent is another one than at first, the rank is asked to stop, as by SIGTERM: all ranks save on the same
    step. If it is still there after ``GRACE_S`` (in an operation that waits for a rank that is gone), it ends at once.
    A process that a person started by hand may outlive the shell.
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
    sys.stderr.write(f"the launcher has died, and this rank could not end in order within {GRACE_S:g} s\n")
    sys.stderr.flush()
    os._exit(75)


@contextmanager
def stoppable(stop: StopRequest) -> Iterator[None]:
    """A block that waits until the other ranks have come, before there is anything to save.

    They may have ended on the way, by the same signal that this rank got: it waits ``GRACE_S`` for them after a request to
    stop, whatever library it waits in, and ends.
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
            sys.stderr.write(f"{stop.reason} before all ranks had come: run the same command again.\n")
            sys.stderr.flush()
            os._exit(75)


def end_process(code: int) -> None:
    """End this process with ``code``, whatever state the library of the process group is in.

    A launcher that sees one rank end signals the others, and an orderly end waits for threads of peers that are gone.
    """
    for number in _ASK:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # the terminal may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
