"""Environment variables of the launcher, read before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "50000", "OMP_WAIT_POLICY": "PASSIVE"}  # libgomp goes by the first, other runtimes by the second


def rank_in_environment() -> int:
    """Rank of this process, before it has joined a process group."""
    return int(os.environ.get("RANK", "0"))


def world_in_environment() -> int:
    """Number of processes that the launcher started, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    """Run the block with the rank and the world size of a process of another run, without a process group."""
    before = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def local_rank() -> int:
    """Rank of this process on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks_of_host() -> int:
    """Number of processes of the run on this host, which torchrun reports; the world size with other launchers."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_in_environment()))


def attempt() -> int:
    """Number of restarts of this run by an elastic launcher, 0 at first."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """Run id of an elastic launcher, the same in every attempt."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def disable_onnxruntime_telemetry() -> None:
    """Disable the telemetry of onnxruntime; call it before that is imported.

    Newer versions record what they run in the user's cache folder and upload it. ``ORT_DISABLE_TELEMETRY=0`` allows that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def let_idle_threads_sleep() -> None:
    """Let waiting OpenMP threads spin for a few milliseconds and then sleep; call it before torch is imported.

    Most operations of a step begin within that time: on an idle CPU, threads that sleep at once make a step of resnet18 10 %
    slower. On a busy one, threads that spin for as long as libgomp does by default take the cores of the threads that they wait
    for (loader workers, a browser), and a step takes twice as long. ``GOMP_SPINCOUNT`` and ``OMP_WAIT_POLICY`` choose otherwise.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & {*os.environ}:
        os.environ.update(_SPIN_BRIEFLY)


def plain_environment() -> dict[str, str]:
    """Return the environment of this process as it would be without ``let_idle_threads_sleep``."""
    is_ours = _SPIN_BRIEFLY.items() <= os.environ.items()
    return {name: value for name, value in os.environ.items() if not (is_ours and name in _SPIN_BRIEFLY)}
