"""Trackers without a library: one that writes down what it gets, and those that fail in each way."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from up.tracking.trackers.tracker import End, TrackedRun, Tracker

TABLES = {
    "tracker": {name.lower(): f"tests.harness.trackers:{name}" for name in ("Recorder", "Failing", "Locked", "Absent", "Unbound")}
}


class Recorder(Tracker):
    """Appends what it is told to a file: ``[event, value, …]`` a line."""

    def __init__(self, *, file: str) -> None:
        self.file = file

    def start(self, run: TrackedRun) -> str:
        self.id = run.run_id or uuid.uuid4().hex
        self.write("start", self.id, run.folder, run.config.get("saver"))
        return self.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.write("row", step, dict(values))

    def best(self, values: Mapping[str, float]) -> None:
        self.write("best", dict(values))

    def finish(self, state: End) -> None:
        self.write("finish", state)

    def write(self, *event: object) -> None:
        with Path(self.file).open("a") as file:
            file.write(json.dumps(event) + "\n")


class Failing(Recorder):
    """Fails at the third row, or where ``at`` says: by an exception, a full disk, a hang, or the end of its process."""

    def __init__(self, *, file: str, how: str, at: str = "log") -> None:
        super().__init__(file=file)
        self.how, self.at, self.rows = how, at, 0

    def start(self, run: TrackedRun) -> str:
        self.fail("start")
        return super().start(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows += 1
        if self.rows >= 3:
            self.fail("log")
        super().log(step, values)

    def finish(self, state: End) -> None:
        self.fail("finish")
        super().finish(state)

    def fail(self, place: str) -> None:
        if place != self.at:
            return
        print("about to fail", flush=True)
        match self.how:
            case "raise":
                raise RuntimeError("503 from the\nserver")
            case "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "hang":
                time.sleep(600)
            case "hold":
                ctypes.PyDLL(None).sleep(600)  # without giving the interpreter back
            case "end":
                os._exit(3)


class Locked(Recorder):
    """Cannot be sent to another process."""

    def __init__(self, *, file: str = "") -> None:
        super().__init__(file=file)
        self.opened = threading.Lock()


class Absent(Recorder):
    """Needs a library that nobody has."""

    library = "no_such_library_at_all"


class Unbound:
    """No tracker at all."""


def events(file: Path, kind: str) -> list[list[Any]]:
    """What a ``Recorder`` wrote of one kind, without the kind."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [rest for first, *rest in map(json.loads, lines) if first == kind]
