"""Tensors that the ranks share (fsdp) as whole ones, so that checkpoints have one form for any number of ranks.

The functions also take plain tensors, and leave them unchanged.
"""

from __future__ import annotations

from copy import copy

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from up.engine.checkpoint import Stateful
from up.types import StateDict


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor, on its device; a collective operation for a shared tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(value: object) -> object:
    """Gather every shared tensor in ``value`` on the host; a collective operation."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        gathered = copy(value)  # of the same kind: that of a network is ordered and knows the versions of its modules
        gathered.update({key: whole(inner) for key, inner in value.items()})
        return gathered
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def shared_like(tensor: Tensor, model: object) -> Tensor:
    """Return this rank's part of a whole ``tensor`` that all ranks have, cut as ``model`` is; no collective operation."""
    if not isinstance(model, DTensor) or not isinstance(tensor, Tensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


class WholeState:
    """A part with shared tensors (a network, its moving average, an optimizer over it), whose state is whole."""

    def __init__(self, part: Stateful) -> None:
        self._part = part

    def state_dict(self) -> StateDict:
        """Gather the state of the part, in the form that the part has in one process."""
        gathered = whole(self._part.state_dict())
        assert isinstance(gathered, dict)
        return gathered

    def load_state_dict(self, state: StateDict) -> None:
        """Restore from whole tensors, each cut as this rank's own is."""
        if isinstance(self._part, Optimizer):
            parameters = [parameter for group in self._part.param_groups for parameter in group["params"]]
            slots = {
                index: {name: shared_like(value, parameters[index]) for name, value in held.items()}
                for index, held in state["state"].items()
            }
            self._part.load_state_dict({**state, "state": slots})
        else:
            own = self._part.state_dict()
            self._part.load_state_dict({name: shared_like(tensor, own.get(name)) for name, tensor in state.items()})


def is_shared(model: nn.Module) -> bool:
    """Check whether the ranks share out the parameters of ``model``, which may be gathered at the moment."""
    return isinstance(model, FSDPModule)
