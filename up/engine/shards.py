"""Tensors that the ranks share out among themselves (fsdp), as whole ones: checkpoints have one form for one rank and for many.

The functions also take plain tensors, and leave them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from up.engine.checkpoint import Stateful
from up.types import StateDict


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, on its device; a collective operation for one that is shared out."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(value: object) -> object:
    """``value`` with every shared tensor in it gathered to the host; a collective operation that all ranks call."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        gathered = copy(value)  # of the same kind: that of a network is ordered and knows the versions of its modules
        gathered.update({key: whole(inner) for key, inner in value.items()})
        return gathered
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def _whole_state(state: Mapping[str, object]) -> StateDict:
    gathered = whole(state)
    assert isinstance(gathered, dict)
    return gathered


def shared_like(tensor: Tensor, model: object) -> Tensor:
    """This rank's part of a whole ``tensor``, cut as ``model`` is; without talking to the others, who have the same one."""
    if not isinstance(model, DTensor) or not isinstance(tensor, Tensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


class WholeTensors:
    """A part whose tensors are shared out, as one whose state is whole: a network, or a moving average of one."""

    def __init__(self, part: Stateful) -> None:
        self._part = part

    def state_dict(self) -> StateDict:
        """By name, whole."""
        return _whole_state(self._part.state_dict())

    def load_state_dict(self, state: StateDict) -> None:
        """From whole tensors."""
        own = self._part.state_dict()
        self._part.load_state_dict({name: shared_like(tensor, own.get(name)) for name, tensor in state.items()})


class WholeOptimizer:
    """An optimizer over parameters that are shared out, as one whose state is whole."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> StateDict:
        """As torch numbers it: by the position of the parameter in the groups."""
        return _whole_state(self._optimizer.state_dict())

    def load_state_dict(self, state: StateDict) -> None:
        """From whole tensors, each cut as its parameter is."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        cut = {
            index: {name: shared_like(value, parameters[index]) for name, value in held.items()}
            for index, held in state["state"].items()
        }
        self._optimizer.load_state_dict({**state, "state": cut})


def is_shared(model: nn.Module) -> bool:
    """Whether the ranks share out the parameters of ``model``, which may just now be whole."""
    return isinstance(model, FSDPModule)
