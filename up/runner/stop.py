"""Signals ask the loop to stop; the loop saves and leaves at the next update."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Set by the first SIGTERM, SIGUSR1 or Ctrl-C. A second one ends the process at once, without a save."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """75 (preempted: run me again); 130 after Ctrl-C, as a shell expects."""
        return 130 if self.signal == signal.SIGINT else 75

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """The signal handler: only a flag is set, so that it is safe at any instruction."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)


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
