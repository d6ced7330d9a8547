"""This process among the others: its rank, and the few collective operations that training needs.

Everything here also works in a plain process, where there is one rank and every operation is the identity.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from up.errors import UserError

T = TypeVar("T")


def is_parallel() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all, 0 in a plain process."""
    return dist.get_rank() if is_parallel() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_parallel() else 1


def is_main() -> bool:
    """Whether this process writes the files and speaks to the user."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


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
    """Join the process group that the launcher's environment describes; a plain process has none to join."""
    if is_parallel() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"), timeout=timedelta(seconds=timeout_s))


def leave() -> None:
    """Leave the process group, if any."""
    if is_parallel():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if is_parallel():
        dist.barrier()


def max_over_ranks(value: int) -> int:
    """The largest of all ranks' values."""
    if not is_parallel():
        return value
    held = torch.tensor([value], dtype=torch.int64, device=_collective_device())
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' tensors, in place."""
    if is_parallel():
        dist.all_reduce(tensor)
    return tensor


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


def _collective_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
