"""Signals ask the loop to stop; the loop saves and leaves at the next update."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SAME_REQUEST_S = 0.5  # a scheduler and a launcher may both pass on the one signal that they got


class StopRequest:
    """Set by the first SIGTERM, SIGUSR1 or Ctrl-C. A second one ends the process at once, without a save."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.reason = ""
        self._asked_at = 0.0
        self._is_over = False

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def is_interrupt(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.signal == signal.SIGINT

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """The signal handler: only a flag is set, so that it is safe at any instruction."""
        now = time.monotonic()
        if self._is_over or (self.signal == number and now - self._asked_at < _SAME_REQUEST_S):
            return
        if self.signal is not None:
            os._exit(128 + number)
        self.signal, self._asked_at = signal.Signals(number), now
        self.reason = f"stopped by {self.signal.name}"

    def ask_because(self, reason: str) -> None:
        """Ask to stop for another reason than a signal."""
        if self.signal is None:
            self.signal, self.reason = signal.SIGTERM, reason

    def over(self) -> None:
        """From here on signals change nothing: the last word is being written."""
        self._is_over = True


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Handle the signals while the block runs; the previous handlers return afterwards."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.ask) for number in _ASK}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_process(code: int) -> None:
    """End this process with ``code``, whatever state the library of the process group is in.

    A launcher that sees one rank end signals the others, and an orderly end waits for threads of peers that are gone.
    """
    for number in _ASK:
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
