"""This process among the others: its rank, and the few collective operations that training needs.

Everything here also works in a plain process, where there is one rank and every operation is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from up.distributed.env import attempt, local_rank, rank_in_environment, world_in_environment
from up.errors import PeerLost, UserError

T = TypeVar("T")


def is_parallel() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process, also before the ranks have joined; 0 in a plain process."""
    return dist.get_rank() if is_parallel() else rank_in_environment()


def world_size() -> int:
    """World size, also before the ranks have joined; 1 in a plain process."""
    return dist.get_world_size() if is_parallel() else world_in_environment()


def is_main() -> bool:
    """Whether this process writes the files and speaks to the user."""
    return rank() == 0


def device_for(name: str) -> torch.device:
    """The device that ``runtime.device`` means here: ``auto`` is this rank's GPU where there is one."""
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
        found = f"{kind.type} alone, {number} of it" if kind else "no accelerator"
        raise UserError(f"got {device}, but torch finds {found} here. Expected auto, cpu, or a device that is there.")


def join(device: torch.device, *, timeout_s: float, backend: str | None = None) -> None:
    """Join the process group that the launcher's environment describes; a plain process has none to join.

    Tensors on the host travel through gloo on any device: votes and words wait neither for the GPU nor for its library.
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
            f"the ranks have found each other but cannot connect ({str(error).splitlines()[0]}). Is every port open between the "
            "hosts? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to use."
        ) from error


_MET: list[Store] = []  # one to a process, like torch's default group


def rendezvous_store(timeout_s: float = 300.0) -> Store:
    """The key-value store through which the ranks find each other: that of the launcher, or rank 0's own.

    Raises ``UserError`` where rank 0 cannot listen, ``PeerLost`` where it is not found within ``timeout_s``.
    """
    if not _MET:
        limit = timedelta(seconds=timeout_s)
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            found: tuple[Store, int, int] = next(rendezvous("env://", timeout=limit))
        except (dist.DistError, ValueError) as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error):
                raise UserError(f"{where}: the port is in use. Choose another with --port, or MASTER_PORT.") from error
            if isinstance(error, ValueError):
                raise UserError(f"MASTER_ADDR and MASTER_PORT are not set: {error}") from error
            raise PeerLost(
                f"{where}: not all of {world_in_environment()} ranks met there within {timeout_s:g} s. "
                "Are all hosts started, and is the port open between them?"
            ) from error
        _MET.append(PrefixStore(f"attempt {attempt()}", found[0]))  # the launcher's store outlives an attempt
    return _MET[0]


def leave() -> None:
    """Leave the process group, if any."""
    if is_parallel():
        dist.destroy_process_group()
    _MET.clear()


def barrier() -> None:
    """Wait for all ranks."""
    maxima_over_ranks([0])


def maxima_over_ranks(values: list[int]) -> list[int]:
    """The largest of all ranks' values at each position, in one operation."""
    if not is_parallel():
        return values
    held = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return held.tolist()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' tensors, in place."""
    if is_parallel():
        dist.all_reduce(tensor)
    return tensor


def means_over_ranks(scalars: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each scalar's mean over the ranks, in one operation, which no host waits for where the scalars are on a GPU."""
    if not is_parallel() or not scalars:
        return dict(scalars)
    means = sum_over_ranks(torch.stack([scalar.float() for scalar in scalars.values()])) / world_size()
    return dict(zip(scalars, means.unbind(), strict=True))


def gather_objects(value: T) -> list[T]:
    """Every rank's ``value`` in the order of ranks, on every rank."""
    if not is_parallel():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def from_main(value: T) -> T:
    """Rank 0's ``value``, on every rank."""
    if not is_parallel():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]
