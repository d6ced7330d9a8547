"""A file of scalars for TensorBoard. Imported with the first scalar: the library takes a tenth of a second."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_FLUSH_S = 30.0


class EventFile:
    """A file of scalars for TensorBoard, which hides the points of earlier files from ``first_step`` on.

    The caller's thread writes: the thread of tensorboardX's own writer ends silently on a full disk, and then the run waits for
    it forever.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{first_step}")
        self._flushed = 0.0
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point for each name. Raises ``OSError``."""
        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._writer.close()

    def _write(self, **fields: object) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **fields))
