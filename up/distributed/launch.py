"""Launch the ranks of a run: our elastic launcher starts them, or Slurm or MPI, whose variables give rank and world size."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn

from up.distributed.signals import LAUNCHER_PID, handled
from up.errors import PeerLost, UserError
from up.processors import available_processors
from up.types import Kwargs

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

Environment = Mapping[str, str]
SAVING_S = 3600  # limit for ranks to save after a signal; a scheduler or a second signal ends them earlier
STARTING_S = 10  # limit for the interpreters of ranks to start
AGAIN_S = 0.05  # seconds until an exception that Python dropped is raised again
LARGEST_PORT = 65_535


@dataclass(frozen=True)
class Launch:
    """Launch options of the command line."""

    by: Literal["pytorch", "slurm", "mpi"] | None = None
    processes: int | None = None  # on this host
    hosts: int = 1
    host_rank: int = 0
    endpoint: str | None = None  # HOST:PORT that all hosts reach
    port: int | None = None
    max_restarts: int = 0

    def launcher(self, environment: Environment) -> Literal["pytorch", "slurm", "mpi"] | None:
        """Return the program that starts the ranks; None if this process is a rank already, or the only one."""
        if "RANK" in environment and "WORLD_SIZE" in environment:
            return None  # started by torchrun, our own launcher, or by hand
        if self.by is not None:
            return self.by
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return "slurm"  # otherwise each task would train alone, in the same folder
        if int(environment.get("OMPI_COMM_WORLD_SIZE", environment.get("PMI_SIZE", "1"))) > 1:
            return "mpi"
        return "pytorch" if (self.processes or 1) > 1 or self.hosts > 1 else None


def launched(launch: Launch, words: Sequence[str], code_of_run: Callable[[], int | None]) -> int | None:
    """Start the ranks and return their exit code; None in a process that is a rank, its environment complete.

    ``words`` follow ``python -m up``. ``code_of_run`` returns the exit code in the run's status after the ranks ended by a signal.
    """
    by = launch.launcher(os.environ)
    if by == "pytorch":
        signals = _Signals()
        with handled(signals.handle):
            return _elastic(launch, words, code_of_run, signals)
    if by == "slurm":
        os.environ.update(slurm_environment(os.environ, launch.port))
    elif by == "mpi":
        os.environ.update(mpi_environment(os.environ, launch.port, launch.endpoint))
    return None


def slurm_environment(environment: Environment, port: int | None = None) -> dict[str, str]:
    """Return the variables of a rank from those of a Slurm task; the rendezvous is on the first host of the step."""
    try:
        rank, local = environment["SLURM_PROCID"], environment["SLURM_LOCALID"]
        world = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
        nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    except KeyError as missing:
        raise UserError(
            f"--launch slurm: {missing} is not set. Start the ranks with srun, one task a GPU: "
            "srun --ntasks-per-node 8 python -m up train …"
        ) from None
    job = f"{environment.get('SLURM_JOB_ID', '0')}.{environment.get('SLURM_STEP_ID', '0')}"
    address = environment.get("MASTER_ADDR") or _first_host(nodes)
    return _rank_environment(environment, (rank, world, local), address, port, job)


def mpi_environment(environment: Environment, port: int | None = None, endpoint: str | None = None) -> dict[str, str]:
    """Return the variables of a rank from those of Open MPI (OMPI_…) or of MPICH and Intel MPI (PMI_…)."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    rank, world = (_first(environment, several) for several in names)
    if rank is None or world is None:
        raise UserError("--launch mpi: neither OMPI_COMM_WORLD_RANK nor PMI_RANK is set. Start the ranks with mpirun -n N.")
    local = _first(environment, ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK")) or "0"
    here = _first(environment, ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"))
    address, number = address_and_port(endpoint) if endpoint else ("", None)
    address = address or environment.get("MASTER_ADDR") or ("127.0.0.1" if here == world else "")
    if not address:
        raise UserError("--launch mpi: on several hosts the ranks need a rendezvous endpoint: --rdzv HOST:PORT of rank 0.")
    job = _first(environment, ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")) or "0"
    return _rank_environment(environment, (rank, world, local), address, number or port, job)


def address_and_port(endpoint: str) -> tuple[str, int | None]:
    """Split ``HOST:PORT``; an IPv6 address is in brackets, ``[::1]:29500``, and returned without them. None: no port.

    Raises ``UserError`` for anything else.
    """
    found = re.fullmatch(r"(?:\[(?P<v6>[\w:.%]+)\]|(?P<host>[\w.-]+))(?::(?P<port>\d{1,5}))?", endpoint)
    if found is None or int(found["port"] or 0) > LARGEST_PORT:
        fix = f"Write [{endpoint.rpartition(':')[0]}]:PORT for an IPv6 address." if endpoint.count(":") > 1 else ""
        raise UserError("--rdzv", got=endpoint, expected="HOST:PORT", fix=fix)
    return found["v6"] or found["host"], int(found["port"]) if found["port"] else None


def _rank_environment(
    environment: Environment, ranks: tuple[str, str, str], address: str, port: int | str | None, job: str
) -> dict[str, str]:
    rank, world, local = ranks
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    only_gpu = bool(visible) and "," not in visible  # a task with one visible GPU sees it as the first
    # the derived port is the same for all ranks of a job, another for the next job, and below the ephemeral ports
    derived = 10_000 + zlib.crc32(job.encode()) % 20_000
    return {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": "0" if only_gpu else local,
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port or environment.get("MASTER_PORT") or derived),
    }


def code_of_failures(codes: Sequence[int]) -> int:
    """Return one exit code for all failed ranks: first those that need a correction, then those that a rerun may solve.

    A negative code is the signal that ended a rank. SIGKILL comes from the kernel, for memory, or from an administrator.
    """
    crashed = [code for code in codes if code < 0 and -code not in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)]
    for code in (2, 3, 74, 130, 75):
        if code in codes and not (code in (130, 75) and (1 in codes or crashed)):
            return code
    return 1 if 1 in codes or crashed else 75


def _elastic(launch: Launch, words: Sequence[str], code_of_run: Callable[[], int | None], signals: _Signals) -> int:
    # Imported here, which takes seconds: a signal that arrives in between waits until it can be raised.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    config = _launch_config(launch)
    if "LOGLEVEL" not in os.environ:
        _silence("torch.distributed")
    os.environ[LAUNCHER_PID] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_processors() // config.nproc_per_node)))
    try:
        with signals.raised_as(SignalException):
            elastic_launch(config, sys.executable)("-m", "up", *words)
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        _report_killed(codes)
        return code_of_failures(list(codes.values()))
    except SignalException as error:
        _end_unknown_ranks(error.sigval)
        left = code_of_run()
        return _code_before_the_run(error.sigval) if left is None else left
    except RendezvousConnectionError as error:
        if launch.host_rank == 0:
            raise UserError(f"{config.rdzv_endpoint}: the port is in use. Choose another, or leave --port out.") from error
        raise PeerLost(f"{config.rdzv_endpoint}: no answer. Is the host with --node-rank 0 up, and the port open?") from error
    except RendezvousError as error:
        raise PeerLost(f"{config.rdzv_endpoint}: not all {launch.hosts} hosts joined ({error}). Start the others too.") from error
    return 0


def _launch_config(launch: Launch) -> LaunchConfig:
    from torch.distributed.launcher.api import LaunchConfig

    processes = _accelerators() if launch.processes is None else launch.processes
    if processes < 1 or launch.hosts < 1 or not 0 <= launch.host_rank < launch.hosts or launch.max_restarts < 0:
        raise UserError(
            f"--ng {processes} --nm {launch.hosts} --node-rank {launch.host_rank} --max-restarts {launch.max_restarts}: expected "
            "at least one process and one host, the number of this host counted from 0, and no negative number of restarts."
        )
    port = address_and_port(launch.endpoint)[1] if launch.endpoint else None
    if launch.hosts > 1 and port is None:
        raise UserError(f"--nm {launch.hosts}: the hosts need a rendezvous endpoint: --rdzv HOST:PORT, the same on each.")
    alone = launch.hosts == 1
    endpoint = launch.endpoint or f"localhost:{launch.port or 0}"
    wanted: Kwargs = {
        "min_nodes": launch.hosts,
        "max_nodes": launch.hosts,
        "nproc_per_node": processes,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": endpoint,
        "run_id": uuid.uuid4().hex if alone else f"up-{endpoint}",
        "rdzv_configs": {"is_host": launch.host_rank == 0},
        "local_addr": "localhost" if alone else None,
        "max_restarts": launch.max_restarts,
        "signals_to_handle": "SIGQUIT",
        "shutdown_timeout": SAVING_S,
    }
    known = {field.name for field in fields(LaunchConfig)}  # the last two are newer than the oldest supported torch
    return LaunchConfig(**{name: value for name, value in wanted.items() if name in known})


class _Signals:
    """Signals of the launcher: the first goes to the ranks, which save and end; a second ends them and this process at once."""

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._exception: Callable[..., BaseException] | None = None
        self._raised: BaseException | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal in the main thread."""
        if self._asked is not None:
            _end_all(number)
        self._asked = signal.Signals(number)
        self._raise()

    @contextmanager
    def raised_as(self, exception: Callable[..., BaseException]) -> Iterator[None]:
        """Raise signals in the block as ``exception``, which torch's launcher expects; one that came before, at its start.

        Python drops an exception that is raised in a destructor or in a callback of a fork, and only calls
        ``sys.unraisablehook``: the exception is then raised once more.
        """
        self._exception, hook = exception, sys.unraisablehook

        def on_dropped(dropped: sys.UnraisableHookArgs) -> None:
            if dropped.exc_value is not None and dropped.exc_value is self._raised:
                signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            else:
                hook(dropped)

        alarm = signal.signal(signal.SIGALRM, lambda *_: self._raise())
        sys.unraisablehook = on_dropped
        try:
            self._raise()
            yield
        finally:
            self._exception = None
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
            sys.unraisablehook = hook

    def _raise(self) -> None:
        if self._asked is not None and self._exception is not None:
            _until_ranks_listen()
            self._raised = self._exception(f"got {self._asked.name}", sigval=self._asked)
            raise self._raised


def _code_before_the_run(number: int) -> int:
    if number == signal.SIGINT:
        return 130
    sys.stderr.write(f"stopped by {signal.Signals(number).name}, with nothing to save: run the same command again.\n")
    return 75


def _end_all(number: int) -> NoReturn:
    for rank in _ranks():
        os.kill(rank, signal.SIGKILL)
    os._exit(128 + number)


def _end_unknown_ranks(number: int) -> None:
    """Send a signal to the ranks that are left, and wait until they have saved and ended.

    torch's launcher does this for the ranks that it knows, but it knows none before it has started all ranks of this host.
    """
    for rank in _ranks():
        os.kill(rank, number)
    end = time.monotonic() + SAVING_S
    while (left := _ranks()) and time.monotonic() < end:
        for rank in left:
            with suppress(ChildProcessError):
                os.waitpid(rank, os.WNOHANG)
        time.sleep(0.02)


def _until_ranks_listen() -> None:
    # a rank whose interpreter is just starting would end by the signal, with a traceback
    end = time.monotonic() + STARTING_S
    while time.monotonic() < end and not all(map(_listens, _ranks())):
        time.sleep(0.02)


def _ranks() -> list[int]:
    return [int(child) for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def _listens(rank: int) -> bool:
    """Check whether a process handles SIGTERM or has ended."""
    try:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{rank}/status").read_text().splitlines() if ":\t" in line)
    except OSError:
        return True  # it has ended
    return status["State"].startswith("Z") or bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def _report_killed(codes: Mapping[int, int]) -> None:
    """Report the ranks that ended without a report of their own."""
    for number, code in sorted(codes.items()):
        if code == -signal.SIGKILL:
            sys.stderr.write(
                f"rank {number} was killed (SIGKILL), perhaps for its memory (`dmesg`). Run the same command again: it resumes "
                "from the newest checkpoint.\n"
            )
        elif code < 0 and -code not in (signal.SIGTERM, signal.SIGINT):
            sys.stderr.write(f"rank {number} crashed ({signal.Signals(-code).name}).\n")


def _silence(prefix: str) -> None:
    # the ranks have reported the failure; the launcher would log it again
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith(prefix) and isinstance(logger, logging.Logger):
            logger.setLevel(logging.CRITICAL)


def _accelerators() -> int:
    import torch

    return torch.accelerator.device_count() or 1


def _first(environment: Environment, names: Sequence[str]) -> str | None:
    return next((environment[name] for name in names if name in environment), None)


def _first_host(nodes: str) -> str:
    if not any(sign in nodes for sign in "[],"):
        return nodes
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"--launch slurm: `scontrol show hostnames {nodes}` failed ({error}). Set MASTER_ADDR to the first host."
        ) from error
    return listed.split()[0]
