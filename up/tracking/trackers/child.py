"""The process in which a tracker works: rows arrive on standard input, replies leave on standard output.

A library may hang, hold the interpreter or print; here it can do none of this to the training. The process ends when the training
does, at the latest ``close_s`` seconds after it.
"""

from __future__ import annotations

import base64
import errno
import faulthandler
import fcntl
import json
import os
import pickle
import queue
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from up.tracking.trackers.tracker import TrackedRun, Tracker
from up.types import Json, Record

_MOST_WAITING = 10_000  # rows read from the pipe, but not yet taken by the tracker
_STUCK_S = 120.0  # a library that holds the interpreter longer ends the process
_LEAST_FREE = 200_000_000  # bytes: a tracker must not take the room of the next checkpoint


class MessageReader(threading.Thread):
    """Reads the messages of the training process, and ends this process soon after that one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.waiting: queue.Queue[bytes | None] = queue.Queue()
        self.close_s = 60.0
        self._parent = os.getppid()

    def run(self) -> None:
        """Read until the pipe is closed or the parent is gone; a worker of the data loader may hold the pipe open longer."""
        rest = b""
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            while True:
                faulthandler.dump_traceback_later(_STUCK_S, exit=True, file=nowhere)  # by a thread that needs no interpreter
                is_orphan = os.getppid() != self._parent
                if self.waiting.qsize() >= _MOST_WAITING and not is_orphan:
                    time.sleep(0.1)
                    continue
                if not select.select([0], [], [], 0 if is_orphan else 0.5)[0]:
                    if is_orphan:
                        break
                    continue
                read = os.read(0, 1 << 16)
                if not read:
                    break
                *lines, rest = (rest + read).split(b"\n")
                for line in lines:
                    self.waiting.put(line)
            self.waiting.put(None)
            faulthandler.dump_traceback_later(self.close_s + 1, exit=True, file=nowhere)
            time.sleep(self.close_s)
            os._exit(1)

    def messages(self) -> Iterator[Json]:
        """Yield the messages as they arrive."""
        while (line := self.waiting.get()) is not None:
            yield json.loads(line)


class SentRecord:
    """Run id and last step that the tracker of a run has taken, in a file of the run folder; one process at a time."""

    def __init__(self, path: Path, patience_s: float) -> None:
        self.path = path
        self._file: int | None = None
        self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        end = time.monotonic() + patience_s
        while True:  # the process of a killed training may still be sending
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return  # a file system without locks
                if time.monotonic() > end:
                    raise TimeoutError("the process of an earlier start of this run still uses the tracker") from error
            time.sleep(0.2)

    def read(self) -> Record:
        """Return the record; empty if there is none."""
        try:
            found: Record = json.loads(self.path.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            return {}

    def write(self, run_id: str, last_step: int) -> None:
        """Write the record over the one before, which is no longer: once a row, so in one call."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self._file, json.dumps({"run_id": run_id, "last_step": last_step}).encode() + b"\n", 0)


class TrackerServer:
    """Passes messages to the tracker, and replies."""

    def __init__(self, replies: BinaryIO) -> None:
        self.replies = replies
        self.tracker: Tracker | None = None
        self.last_step = 0

    def reply(self, **fields: object) -> None:
        """Send a reply; does nothing if the training has closed the pipe."""
        with suppress(OSError):
            self.replies.write(json.dumps(fields).encode() + b"\n")
            self.replies.flush()

    def start(self, message: Json) -> None:
        """Open the run, or continue the one that the run folder or the checkpoint names."""
        tracker: Tracker = pickle.loads(base64.b64decode(message["tracker"]))
        run = TrackedRun(**message["run"])
        self.record = SentRecord(Path(message["record"]), 1.5 * message["close_s"])
        found = self.record.read()
        is_known = bool(found) and run.run_id in (None, found["run_id"])
        self.last_step = found["last_step"] if is_known else 0
        self.run_id = tracker.start(replace(run, run_id=found["run_id"]) if is_known else run)
        self.tracker = tracker
        self.record.write(self.run_id, self.last_step)
        self.reply(run_id=self.run_id)

    def take(self, message: Json) -> None:
        """Handle a message other than the first. Raises what the library raises."""
        if self.tracker is None:
            raise RuntimeError("it did not start")
        match message:
            case {"step": int(step), "values": values}:
                if step > self.last_step:  # a row of a repeated step is there already
                    self._require_space()
                    self.tracker.log(step, values)
                    self.last_step = step
                    self.record.write(self.run_id, step)
            case {"best": values}:
                self.tracker.best(values)
            case {"end": state}:
                self.tracker.finish(state)
                self.tracker = None

    def _require_space(self) -> None:
        if shutil.disk_usage(self.record.path.parent).free < _LEAST_FREE:
            raise OSError(errno.ENOSPC, f"less than {_LEAST_FREE // 10**6} MB are free: the rest is for checkpoints")


def serve(reader: MessageReader, replies: BinaryIO) -> None:
    """Pass on messages until the training ends; a training that ends without the last message has failed."""
    server = TrackerServer(replies)
    for number, message in enumerate(reader.messages()):
        try:
            if number == 0:
                reader.close_s = message["close_s"]
                sys.path[:] = message["path"]
                server.start(message)
            else:
                server.take(message)
        except Exception as error:  # whatever the library raises
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            server.reply(error=text[:300], lost="step" in message)
        server.reply(handled=True)
    if server.tracker is not None:
        with suppress(Exception):
            server.tracker.finish("failed")


def main() -> None:
    """Serve one tracker, whose output goes to a file."""
    replies = os.fdopen(os.dup(1), "wb")
    with suppress(OSError):
        os.nice(10)
    output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # the training decides when to end
        signal.signal(number, signal.SIG_IGN)
    reader = MessageReader()
    reader.start()
    serve(reader, replies)
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(0)  # a library may hang in its own atexit


if __name__ == "__main__":
    main()
