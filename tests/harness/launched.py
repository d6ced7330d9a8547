"""Programs under a launcher, as a shell or a scheduler starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.faulty import children_of
from tests.harness.ranks import PATIENCE_S, ROOT, Server, code_within
from up.distributed.signals import StopRequest

UP = (sys.executable, "-m", "up", "train")
FORKED = ()  # the same from a process that has imported torch already: seconds less where the import does not matter
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "up", "train")
FORKED_TORCHRUN = ("torchrun forked", *TORCHRUN[3:])  # so are its ranks
TWO = ("--launch", "pytorch", "--ng", "2")


def importing_until_asked_to_stop(words: Sequence[str]) -> int:
    """``up WORDS…`` whose ranks, which hear signals by then, have still to import what trains when the first one comes."""
    from up.__main__ import main
    from up.commands import train

    real = train.train_rank

    def imported(config: Path, overrides: list[str], stop: StopRequest, *rest: Any, **named: Any) -> int:
        assert code_within(PATIENCE_S, lambda: 0 if stop else None) == 0, "no signal"
        return real(config, overrides, stop, *rest, **named)

    train.train_rank = imported
    return main(list(words))


def asked_to_stop_while_starting(words: Sequence[str]) -> int:
    """``up WORDS…`` whose launcher gets SIGTERM when it has started the last rank, before torch's part of it knows any of them."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    from up.__main__ import main

    real = SubprocessHandler._popen

    def popen(handler: SubprocessHandler, args: Any, env: dict[str, str]) -> Any:
        process = real(handler, args, env)
        if int(env["RANK"]) == int(env["WORLD_SIZE"]) - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    SubprocessHandler._popen = popen  # type: ignore[method-assign]
    return main(list(words))


class Program:
    """A program in a process group of its own, as a shell starts it; ended with all its descendants after the test."""

    def __init__(self, pid: int, output: Path, poll: Callable[[], int | None]) -> None:
        self.pid, self.output, self.poll = pid, output, poll

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def ranks(self) -> list[int]:
        return children_of(self.pid)

    def wait(self) -> int:
        code = code_within(PATIENCE_S, self.poll)
        assert code is not None, f"still running:\n{self.said}"
        return code

    def end(self) -> None:
        if self.poll() is None:
            for pid in [self.pid, *self.ranks()]:
                os.kill(pid, signal.SIGKILL)
            self.wait()


def spawned(words: Sequence[str], output: Path, cwd: Path = ROOT, **environment: str) -> Program:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "UP_FAULT")}
    with output.open("w") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            process_group=0,
            env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        )
    return Program(process.pid, output, process.poll)


def forked(server: Server, words: Sequence[str], output: Path, environment: Mapping[str, str], **options: Any) -> Program:
    """The same from the process that has imported everything."""
    pid = server.ask(words=list(words), environment=dict(environment), output=str(output), **options)
    return Program(pid, output, lambda: server.ask(poll=pid))  # type: ignore[no-any-return]
