"""What would keep a rank for ever is noticed, and ends it: a launcher that is gone, ranks that do not come."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from up.distributed.signals import StopRequest

LAUNCHER_PID = "UP_LAUNCHER_PID"  # set by our own launcher, which may die before this process has begun to watch
GRACE_S = 7.0  # to save and leave, once the launcher is gone
_PERIOD_S = 0.5
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


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
    thread = threading.Thread(target=_wait, args=(stop, is_over), name="up-meeting", daemon=True)
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
