"""Faults for tests: make a run fail at the rank and step of the variable ``UP_FAULT``.

``UP_FAULT="rank=1,step=7,action=kill"``. ``rank`` is 0 if left out; ``step`` counts the steps done; ``at`` is the moment
in the step: ``update`` (before the ranks vote, the default), ``evaluation``, ``save``, ``averaging`` (after an average of
checkpoints was written). Actions:

- ``term``, ``int``, ``usr1``: the rank gets the signal. ``kill``: it gets SIGKILL. ``hang``: it hangs until it is killed.
- ``nan``: the images of the step become NaN. ``error``: the rank fails with a bug.
- ``oom``: from the step on, forward passes of more than ``images=N`` images run out of memory, as on a GPU.
- ``kill_worker``: its first loader worker gets SIGKILL.
- ``disk_full``: no file of the rank can grow beyond 64 KiB from here on. ``no_folder``: the run folder disappears.

A restarted run (``--max-restarts``) meets the fault in its first attempt only. Without the variable nothing happens.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from up.data.records import Batch
from up.distributed.env import attempt
from up.distributed.group import rank
from up.errors import UserError
from up.text import did_you_mean

VARIABLE = "UP_FAULT"
FULL_AT = 64 * 1024  # bytes
Moment = Literal["update", "evaluation", "save", "averaging"]
_SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1, "kill": signal.SIGKILL}
ACTIONS = (*_SIGNALS, "hang", "nan", "oom", "error", "kill_worker", "disk_full", "no_folder")


@dataclass(frozen=True)
class Fault:
    """A fault of this rank at a step; ``action`` None for no fault."""

    action: str | None = None
    step: int = 0
    at: str = "update"
    folder: Path = Path()
    images: int = 0

    def strike(self, step: int, moment: Moment) -> None:
        """Cause the fault at its step and moment."""
        if self.action is None or step != self.step or moment != self.at:
            return
        if self.action in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[self.action])
        elif self.action not in ("nan", "oom"):
            _EFFECTS[self.action](self)

    def exhaust(self, step: int, images: int) -> None:
        """Run out of memory in a forward pass of ``images`` images, for the fault ``oom``."""
        if self.action == "oom" and step >= self.step and images > self.images:
            raise torch.OutOfMemoryError(f"no memory for {images} images, as {VARIABLE} asks for from step {self.step} on")

    def spoil(self, batch: Batch, step: int) -> Batch:
        """Return the batch of ``step``, its images or features NaN for the fault ``nan``."""
        if self.action == "nan" and step == self.step:
            field = "image" if "image" in batch else "features"
            batch[field] = batch[field] * float("nan")
        return batch


def fault_from(environment: Mapping[str, str], folder: Path) -> Fault:
    """Parse the fault of this rank from ``UP_FAULT``. Raises ``UserError`` for an invalid value."""
    text = environment.get(VARIABLE, "")
    if not text:
        return Fault()
    given = {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
    unknown = [name for name in given if name not in ("rank", "step", "action", "at", "images")]
    action, at = given.get("action", ""), given.get("at", "update")
    numbers = [given.get(name, "0") for name in ("rank", "step", "images")]
    if unknown or action not in ACTIONS or at not in get_args(Moment) or not all(number.isdigit() for number in numbers):
        raise UserError(
            f"{VARIABLE}={text!r}: expected rank=R,step=N,action=A,at=M,images=I with A one of {', '.join(ACTIONS)} and M one of "
            f"{', '.join(get_args(Moment))}.{did_you_mean(action, ACTIONS)}"
        )
    if int(given.get("rank", "0")) != rank() or attempt() > 0:
        return Fault()
    return Fault(action, int(given.get("step", "0")), at, folder, int(given.get("images", "0")))


def _hang(_: Fault) -> None:
    while True:
        time.sleep(3600)


def _error(fault: Fault) -> None:
    raise RuntimeError(f"a bug, as {VARIABLE} asks for at step {fault.step}")


def _kill_worker(_: Fault) -> None:
    for worker in multiprocessing.active_children()[:1]:
        worker.kill()


_EFFECTS: Mapping[str, Callable[[Fault], object]] = {
    "hang": _hang,
    "error": _error,
    "kill_worker": _kill_worker,
    # the kernel refuses (EFBIG) in the middle of a file, as a full disk does (ENOSPC)
    "disk_full": lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT, resource.getrlimit(resource.RLIMIT_FSIZE)[1])),
    "no_folder": lambda fault: shutil.rmtree(fault.folder),
}
