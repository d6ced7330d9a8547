"""Hand rows to a tracker in a process of its own, without ever waiting for it while training."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from up.run_files import TRACKERS
from up.text import count
from up.tracking.log import LOGGER
from up.tracking.trackers.tracker import TrackedRun, Tracker
from up.types import Json


class Feed:
    """A tracker and its process. The first trouble is a warning in the log, the rows it cost another one at the end."""

    LONGEST_QUEUE: ClassVar[int] = 1 << 20  # bytes that wait here when the pipe is full
    PATIENCE_S: ClassVar[float] = 30.0  # without an answer, before the log says so
    CLOSE_S: ClassVar[Mapping[str, float]] = {"done": 60.0, "preempted": 30.0, "failed": 30.0, "killed": 60.0}

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self.tracker = tracker
        self.run_id: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._queue, self._replies = bytearray(), b""
        self._open: deque[bool] = deque()  # the messages without an answer: is it a row?
        self._lost = 0
        self._heard = time.monotonic()  # when the process last made progress, or had nothing to do
        self._has_warned = False

    def open(self, run: TrackedRun) -> None:
        """Start the process, which opens the run or continues ``run.run_id``."""
        folder = Path(run.folder, TRACKERS)
        record, log = folder / f"{self.name}.json", folder / f"{self.name}.log"
        first = {
            "path": sys.path,
            "tracker": base64.b64encode(pickle.dumps(self.tracker)).decode(),
            "run": vars(run),
            "record": str(record),
            "close_s": self.CLOSE_S["killed"],
        }
        try:
            folder.mkdir(exist_ok=True)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "up.tracking.trackers.child", str(log)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C ends the training first, and one signal ends all that the library started
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            self._warn(f"its process did not start ({error})")
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._send(first)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Queue a row."""
        self._send({"step": step, "values": values})

    def best(self, values: Mapping[str, float]) -> None:
        """Queue the best evaluation so far."""
        self._send({"best": values})

    def _send(self, message: Json) -> None:
        self.poll()
        if self._process is None:
            self._lost += "step" in message
            return
        line = json.dumps(message, default=str).encode() + b"\n"
        if len(self._queue) + len(line) > self.LONGEST_QUEUE and "step" in message:
            self._lost += 1
            self._warn("it does not take its rows fast enough: some are dropped")
            return
        self._queue += line
        self._open.append("step" in message)
        self._flush()

    def _flush(self) -> None:
        process = self._process
        while process is not None and self._queue:
            assert process.stdin is not None
            try:
                written = os.write(process.stdin.fileno(), self._queue[: 1 << 16])
            except BlockingIOError:
                return
            except OSError:  # no reader
                self._ended()
                return
            del self._queue[:written]

    def poll(self) -> None:
        """Read the replies that are there, pass on what waits, and report a process that does not answer."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        with suppress(BlockingIOError):
            while read := os.read(self._process.stdout.fileno(), 1 << 16):
                *lines, self._replies = (self._replies + read).split(b"\n")
                for line in lines:
                    self._read(json.loads(line))
        self._flush()
        if not self._open:
            self._heard = time.monotonic()
        elif (waited := time.monotonic() - self._heard) > self.PATIENCE_S:
            self._warn(f"it has not answered for {waited:.0f} s; training continues without it")

    def _read(self, reply: Json) -> None:
        self._heard = time.monotonic()
        match reply:
            case {"run_id": str(run_id)}:
                self.run_id = run_id
            case {"handled": True}:
                self._open.popleft()
            case {"error": str(text), "lost": bool(lost)}:
                self._lost += lost
                self._warn(text)

    def _ended(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._end(process)
            self._warn(f"its process ended early (exit code {process.returncode})")

    def ask_to_end(self, state: str) -> float:
        """Tell the tracker how the run ended; return when to stop waiting for it, a time of ``time.monotonic()``."""
        self._send({"end": state})
        return time.monotonic() + self.CLOSE_S[state]

    def close(self, until: float) -> None:
        """Wait for the tracker to end the run, at most ``until`` a time of ``time.monotonic()``; then end its process."""
        while self._process is not None and self._open and time.monotonic() < until:
            self.poll()
            if self._process is not None and self._process.poll() is not None and self._open:
                self._ended()
            time.sleep(0.02)
        process, self._process = self._process, None
        if process is not None:
            is_late = bool(self._open)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.0 if is_late else 1.0)
            self._end(process)
            if is_late:
                self._warn("it did not end in time and was stopped")
        if self._lost:
            LOGGER.warning("%s: %s not delivered; metrics.jsonl has all of them", self.name, count(self._lost, "row"))

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            LOGGER.warning("%s: %s (trackers/%s.log has its output); training is not affected", self.name, what, self.name)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and all that it started, and count what it has not handled."""
        self._lost += sum(self._open)
        self._open.clear()
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
