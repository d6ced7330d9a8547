"""Programs under a launcher, as a shell or a scheduler starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.harness.faulty import children_of
from tests.harness.ranks import PATIENCE_S, ROOT

UP = (sys.executable, "-m", "up", "train")
TWO = ("--launch", "pytorch", "--ng", "2")


class Program:
    """A program in a process group of its own, as a shell starts it; ended with all its descendants after the test."""

    def __init__(self, words: Sequence[str], output: Path, **environment: str) -> None:
        self.output = output
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "UP_FAULT")}
        with output.open("w") as file:
            self.process = subprocess.Popen(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                process_group=0,
                env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
            )

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def ranks(self) -> list[int]:
        return children_of(self.process.pid)

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.said}") from None

    def end(self) -> None:
        if self.process.poll() is None:
            ranks = self.ranks()
            for pid in [self.process.pid, *ranks]:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
