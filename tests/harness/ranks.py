"""Ranks for tests: processes forked from one that has imported everything, so that starting one costs next to nothing.

Run as a program this file is that one process, for all processes of the tests that share its socket: it reads a request a line and
answers with a line, and ends when the last of them has left.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0  # several times what a crowded machine needs


class Server:
    """The process that ranks are forked from, one for all processes that share ``folder``: the first of them starts it."""

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir(), f"up-ranks-{name}")  # a socket's path has at most 107 characters
        with (folder / "ranks.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._joined(path):
                self._start(path)
                assert self._joined(path), "the process that ranks are forked from did not start"

    def _joined(self, path: Path) -> bool:
        """Join the server at ``path``; False if there is none, or one that ends at this moment."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._file = self._socket.makefile("rw")
            return bool(self.ask() == "here")
        except (OSError, ValueError):
            self._socket.close()
            return False

    def _start(self, path: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        for name in ("RANK", "WORLD_SIZE", "UP_FAULT", "PLUGINPATH", "COLUMNS", "LINES"):
            environment.pop(name, None)
        path.unlink(missing_ok=True)
        is_listening, listens = os.pipe()
        os.set_inheritable(listens, True)
        nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        words = [sys.executable, __file__, str(path), str(listens)]
        os.posix_spawn(sys.executable, words, environment, file_actions=nothing)
        os.close(listens)
        os.read(is_listening, 1)
        os.close(is_listening)

    def ask(self, **request: Any) -> Any:
        self._file.write(json.dumps(request) + "\n")
        self._file.flush()
        return json.loads(self._file.readline())

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@dataclass
class Rank:
    """One process of a run."""

    server: Server
    pid: int
    output: Path

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self.server.ask(poll=self.pid)  # type: ignore[no-any-return]

    def wait(self, seconds: float = PATIENCE_S) -> int:
        code = code_within(seconds, self.poll)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {seconds:g} s:\n{self.said}")
        return code

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""  # the server has not begun it yet


def code_within(seconds: float, poll: Callable[[], int | None]) -> int | None:
    """The exit code that ``poll`` returns at last; None where it does not within so many seconds."""
    end = time.monotonic() + seconds
    while (code := poll()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return code


class Ranks:
    """The processes of one run, all on this machine."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks = list(ranks)

    def __getitem__(self, number: int) -> Rank:
        return self.ranks[number]

    def wait(self, seconds: float = PATIENCE_S) -> list[int]:
        try:
            return [rank.wait(seconds) for rank in self.ranks]
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send(signal.SIGKILL)
                rank.wait()

    @property
    def said(self) -> str:
        return "\n".join(f"--- rank {number}\n{rank.said}" for number, rank in enumerate(self.ranks))


@dataclass
class Cluster:
    """Runs ``up train`` on several ranks; an update is 8 images, whatever their number."""

    server: Server
    folder: Path
    path: str

    def start(self, *opts: str, world: int = 2, fault: str = "", command: Sequence[str] = ("train",), **options: Any) -> Ranks:
        batch_size = f"dataset.train.batch_sampler.kwargs.batch_size={8 // world}"
        environment = {**options.pop("environment", {}), **({"UP_FAULT": fault} if fault else {})}
        words = [*command, "--config", self.path, "--opts", batch_size, *opts]
        return start(self.server, self.folder, words, world=world, environment=environment, **options)

    def run(self, *opts: str, codes: Sequence[int] = (0, 0), **options: Any) -> Ranks:
        """Start, wait, and expect these exit codes."""
        ranks = self.start(*opts, world=options.pop("world", len(codes)), **options)
        ended = ranks.wait()
        assert ended == list(codes), ranks.said
        return ranks


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def start(
    server: Server,
    folder: Path,
    words: Sequence[str],
    *,
    world: int = 2,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    open_files: int | None = None,
    only: int | None = None,
    cwd: Path = ROOT,
    entry: str = "up.__main__:main",
    typed: Sequence[str] | None = None,
    waits: Mapping[str, float] | None = None,
) -> Ranks:
    """Start ``python -m up WORDS…`` as ``world`` ranks (as a plain process for 1); what they say goes to files in ``folder``.

    ``entry`` is the function that gets the words and returns the exit code; ``typed`` is the command line that it sees;
    ``waits`` shortens waits of the program: ``{"up.distributed.signals:GRACE_S": 1.0}``.
    """
    port = port or free_port()
    ranks = []
    for rank in range(world) if only is None else [only]:
        variables: dict[str, object] = dict(environment or {})
        if world > 1:
            variables |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        output = folder / f"said-{time.monotonic_ns()}-{rank}.txt"
        pid = server.ask(
            words=list(words),
            environment={name: str(value) for name, value in variables.items()},
            output=str(output),
            open_files=open_files,
            cwd=str(cwd),
            entry=entry,
            typed=typed,
            waits=waits,
        )
        ranks.append(Rank(server, pid, output))
    return Ranks(ranks)


IMPORTED = (  # what a run would import itself, each rank anew
    *("up.build.build", "up.build.trial", "up.engine.ending", "up.engine.loop", "up.commands.train", "up.commands.next_steps"),
    *("up.commands.outcome", "up.tasks.cls.task", "up.tasks.cls.data.files", "up.data.decoding", "up.tracking.events"),
    *("torch.distributed.run", "torch.distributed.fsdp", "torch.utils.serialization", "numpy.ma"),
)


def _serve() -> None:
    os.chdir(ROOT)
    for name in IMPORTED:
        import_module(name)
    import_module("PIL.Image").preinit()
    _build_once()
    gc.collect()
    gc.freeze()  # else each rank's first collection copies all that the imports have left: a third of its time
    path, listens = Path(sys.argv[1]), int(sys.argv[2])
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    door.listen()
    os.close(listens)
    codes: dict[int, int] = {}
    inside: dict[socket.socket, IO[str]] = {}
    while True:
        for each in select.select([door, *inside], [], [])[0]:
            if each is door:
                joined = door.accept()[0]
                inside[joined] = joined.makefile("rw")
                continue
            with suppress(OSError):  # of a process that was killed
                if line := inside[each].readline():
                    answer = _answer(json.loads(line), codes, [door, *inside])
                    inside[each].write(json.dumps(answer) + "\n")
                    inside[each].flush()
                    continue
            with suppress(OSError):
                inside.pop(each).close()
            each.close()
        if not inside:
            path.unlink(missing_ok=True)
            return


def _answer(request: Mapping[str, Any], codes: dict[int, int], sockets: Sequence[socket.socket]) -> Any:
    """The id of the rank that a request starts, or the exit code of one that has ended; ``codes`` are those of before."""
    if "words" in request:
        pid = os.fork()
        if pid == 0:
            for each in sockets:  # the files of a rank are its own
                os.close(each.detach())
            _be_a_rank(request)
        return pid
    if "poll" not in request:
        return "here"
    pid = request["poll"]
    if pid not in codes:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes.get(pid)


def _build_once() -> None:
    """Build the parts of a run, which reads their signatures; no backward pass, after which torch cannot be forked."""
    import torch

    from tests.harness.tiny import load_record, tiny_config, write_images
    from up.build.parts import build_parts
    from up.tracking.display import console_of_run

    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        experiment = load_record(tiny_config(Path(folder), Path(folder, "run")), Path(folder, "config.yaml"))
        build_parts(experiment, torch.device("cpu"))
    console_of_run.cache_clear()  # it is of this process's terminal


def _be_a_rank(request: Mapping[str, Any]) -> None:
    if terminal := request.get("terminal"):
        os.setsid()
        files = [os.open(terminal, os.O_RDWR)] * 3  # which makes it the terminal of this session
    else:
        os.setpgid(0, 0)
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        files = [os.open(os.devnull, os.O_RDONLY), output, output]
    for number, (name, file) in enumerate(zip(("stdin", "stdout", "stderr"), files, strict=True)):
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(number, "w" if number else "r", buffering=1, closefd=False))  # the old one knows another file
    for number in request.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    sys.path[:0] = filter(None, request["environment"].get("PYTHONPATH", "").split(":"))  # as in a fresh process
    os.chdir(request.get("cwd") or ROOT)
    if request.get("open_files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["open_files"], request["open_files"]))
    sys.orig_argv = request.get("typed") or sys.orig_argv
    _fork_ranks_of_our_launcher()
    for place, value in (request.get("waits") or {}).items():
        module, _, name = place.partition(":")
        assert hasattr(import_module(module), name)
        setattr(import_module(module), name, value)
    _run(request.get("entry") or "up.__main__:main", request["words"], request["environment"])


def _run(entry: str, words: list[str], environment: Mapping[str, str]) -> NoReturn:
    """End this process with what ``entry`` returns for the words."""
    from up.distributed.signals import end_process

    code = 1
    try:
        os.environ.update(environment)
        module, _, function = entry.partition(":")
        code = getattr(import_module(module), function)(words) or 0  # None of torchrun
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        end_process(code)


def _fork_ranks_of_our_launcher() -> None:
    """Let the launcher of this process fork its ranks too, where it would start ``python -m up`` anew."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda handler, args, env: Forked(args, env)  # type: ignore[assignment, return-value]


class Forked:
    """As much of ``subprocess.Popen`` as the launcher and a search use for ``python -m up``."""

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        *,
        stdout: IO[bytes] | None = None,
        preexec_fn: Callable[[], None] | None = None,
        **_: object,
    ) -> None:
        self.returncode: int | None = None
        is_fresh, fresh = os.pipe()
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")  # from Python 3.12 on
            self.pid = os.fork()
        if self.pid == 0:
            os.close(is_fresh)
            os.setsid()
            for number in (1, 2) if stdout is not None else ():
                os.dup2(stdout.fileno(), number)
            if preexec_fn is not None:
                preexec_fn()
            sys.orig_argv = list(args)
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals():  # as in a fresh process, where only what is ignored is inherited
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            os.close(fresh)
            os.environ.clear()
            if "RANK" in env and env.get("DEAF") == env["RANK"]:
                time.sleep(PATIENCE_S)  # as a process that has not come to its handlers of signals yet
            words = list(args)[list(args).index("up") + 1 :]
            _run("up.__main__:main", words, env)
        os.close(fresh)
        os.read(is_fresh, 1)  # as Popen waits for exec: until then the process has the handlers of its parent
        os.close(is_fresh)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None:
            code = self._wait(0)
        elif (code := code_within(timeout, self.poll)) is None:
            raise subprocess.TimeoutExpired("up", timeout)
        assert code is not None
        return code

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, options)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
