"""Files of a folder that any process opens: seen by the kernel, so that native code and every child count too."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPEN, _IS_FOLDER, _OVERFLOW = 0x20, 0x40000000, 0x4000  # linux/inotify.h
_EVENT = struct.Struct("iIII")


class Opened:
    """The names of files in ``folder``, without its subfolders, that were opened since this was made."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._file >= 0
        assert libc.inotify_add_watch(self._file, os.fsencode(folder), _OPEN) >= 0, os.strerror(ctypes.get_errno())
        self._names: set[str] = set()

    def names(self) -> set[str]:
        while True:
            try:
                events = os.read(self._file, 1 << 16)
            except BlockingIOError:
                return set(self._names)
            at = 0
            while at < len(events):
                _, mask, _, length = _EVENT.unpack_from(events, at)
                name = events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                assert not mask & _OVERFLOW
                if not mask & _IS_FOLDER:
                    self._names.add(os.fsdecode(name))

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def opened_in(folder: Path) -> Iterator[Opened]:
    made = Opened(folder)
    try:
        yield made
    finally:
        made.close()
