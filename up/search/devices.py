"""GPUs of this host, each lent to one trial at a time, also where several workers of a search run on one host."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from up.errors import UserError
from up.files import make_folder
from up.text import count


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by number or name: those of ``CUDA_VISIBLE_DEVICES``, or all."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [word for word in takewhile(lambda word: word != "-1", map(str.strip, visible.split(","))) if word]


@dataclass
class Lent:
    """GPUs of one trial. ``locks`` are the open files whose locks the training inherits: it holds them until it has ended."""

    gpus: Sequence[str] = ()
    locks: Sequence[int] = ()
    files: ExitStack = field(default_factory=ExitStack)

    def release(self) -> None:
        """Let other trials have the GPUs."""
        self.files.close()


class Devices:
    """The GPUs ``names`` in groups of ``per_trial``; without GPUs, or with 0 a trial, nothing is lent and nothing is locked."""

    def __init__(self, names: Sequence[str] = (), per_trial: int = 0, folder: Path = Path()) -> None:
        """``folder`` is where all workers of the search on this host keep their locks."""
        ends = range(per_trial, len(names) + 1, per_trial) if per_trial else ()
        self.groups = [names[end - per_trial : end] for end in ends]
        self._folder = folder

    def take(self) -> Lent | None:
        """Lend a group of GPUs that no trial of the search has; None if there is none."""
        return next(filter(None, map(self._locked, self.groups)), None) if self.groups else Lent()

    def _locked(self, gpus: Sequence[str]) -> Lent | None:
        with ExitStack() as stack:
            files = [stack.enter_context(self._file(gpu)) for gpu in gpus]
            try:
                for file in files:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return Lent(gpus, [file.fileno() for file in files], stack.pop_all())

    def _file(self, gpu: str) -> BinaryIO:
        make_folder(self._folder)
        return (self._folder / f"{socket.gethostname()}-gpu-{gpu.replace('/', '-')}.lock").open("ab")


def devices_of(gpus_per_trial: int, gpus: Sequence[str], folder: Path) -> Devices:
    """Return the GPUs that a worker lends to its trials. Raises ``UserError`` if there are some, but fewer than a trial needs."""
    if gpus and gpus_per_trial > len(gpus):
        here = f"at most {len(gpus)}: this host has {count(len(gpus), 'GPU')}"
        fix = "Lower it, or start workers on hosts with more GPUs only."
        raise UserError(got=gpus_per_trial, expected=here, key="search.gpus_per_trial", fix=fix)
    return Devices(gpus, gpus_per_trial, folder)
