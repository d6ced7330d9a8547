"""The process group: rank, world size, and the collective operations that training needs.

All functions also work in a plain process, with one rank, where every operation is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from up.distributed.env import attempt, local_rank, rank_in_environment, world_in_environment
from up.errors import PeerLost, UserError

T = TypeVar("T")


def is_parallel() -> bool:
    """Check whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process, also before the ranks have joined; 0 in a plain process."""
    return dist.get_rank() if is_parallel() else rank_in_environment()


def world_size() -> int:
    """Return the world size, also before the ranks have joined; 1 in a plain process."""
    return dist.get_world_size() if is_parallel() else world_in_environment()


def is_main() -> bool:
    """Check whether this process is the main rank, which writes files and reports to the user."""
    return rank() == 0


def device_for(name: str) -> torch.device:
    """Return the device of ``runtime.device`` on this rank: ``auto`` is its GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)
    if device.type != "cpu":
        _require(device)
    return device


def _require(device: torch.device) -> None:
    """Raise ``UserError`` for a device that torch cannot use here."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    number = torch.accelerator.device_count() if kind else 0
    if kind is None or kind.type != device.type or (device.index or 0) >= number:
        found = f"only {number} {kind.type}" if kind else "no accelerator"
        raise UserError(f"got {device}, but torch finds {found} here. Expected auto, cpu, or an available device.")


def join(device: torch.device, *, timeout_s: float, backend: str | None = None) -> None:
    """Join the process group of the launcher's environment; does nothing in a plain process.

    Tensors on the host use gloo with any device, so that votes and objects wait neither for the GPU nor for NCCL.
    """
    if is_parallel() or world_in_environment() == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with_gpu = device.type == "cuda" and backend != "gloo"
    store = PrefixStore("group", rendezvous_store(timeout_s))
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if with_gpu else "gloo",
            timeout=timedelta(seconds=timeout_s),
            store=store,
            rank=rank_in_environment(),
            world_size=world_in_environment(),
        )
    except RuntimeError as error:
        raise PeerLost(
            f"the rendezvous succeeded but the ranks cannot connect ({str(error).splitlines()[0]}). Is every port open between the "
            "hosts? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to use."
        ) from error


_STORES: list[Store] = []  # at most one a process, like torch's default group


def rendezvous_store(timeout_s: float = 300.0) -> Store:
    """Return the key-value store of the rendezvous: that of the launcher, or rank 0's own.

    Raises ``UserError`` where rank 0 cannot listen, ``PeerLost`` where it is not found within ``timeout_s``.
    """
    if not _STORES:
        limit = timedelta(seconds=timeout_s)
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            found: tuple[Store, int, int] = next(rendezvous("env://", timeout=limit))
        except (dist.DistError, ValueError) as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error):
                raise UserError(f"{where}: the port is in use. Choose another with --port, or MASTER_PORT.") from error
            if isinstance(error, ValueError):
                fix = "Start the ranks with --launch, torchrun, srun or mpirun."
                raise UserError(f"MASTER_ADDR and MASTER_PORT are not set: {error}", fix=fix) from error
            raise PeerLost(
                f"{where}: not all of {world_in_environment()} ranks connected within {timeout_s:g} s. "
                "Are all hosts started, and is the port open between them?"
            ) from error
        _STORES.append(PrefixStore(f"attempt {attempt()}", found[0]))  # the launcher's store outlives an attempt
    return _STORES[0]


def barrier() -> None:
    """Wait for all ranks."""
    maxima_over_ranks([0])


def maxima_over_ranks(values: list[int]) -> list[int]:
    """Return the maximum over the ranks at each position, in one operation."""
    if not is_parallel():
        return values
    held = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return held.tolist()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, in place."""
    if is_parallel():
        dist.all_reduce(tensor)
    return tensor


def means_over_ranks(scalars: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return each scalar's mean over the ranks, which all have the same names, in one operation, without waiting for the GPU."""
    if not is_parallel() or not scalars:
        return dict(scalars)
    names = sorted(scalars)  # their order may differ from rank to rank
    means = sum_over_ranks(torch.stack([scalars[name].float() for name in names])) / world_size()
    found = dict(zip(names, means.unbind(), strict=True))
    return {name: found[name] for name in scalars}


def gather_objects(value: T) -> list[T]:
    """Return every rank's ``value`` in the order of ranks, on every rank."""
    if not is_parallel():
        return [value]
    gathered = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def from_main(value: T) -> T:
    """Return rank 0's ``value`` on every rank."""
    if not is_parallel():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]
