"""torch's fused optimizers, which update a weight and its state in one pass: where they are used, and what keeps them right.

On CUDA devices they leave weights and state unchanged where ``found_inf`` is 1, without the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from up.types import Kwargs, Record, StateDict

_OWN_WAY = ("fused", "foreach", "capturable", "differentiable")  # arguments that choose another implementation


def is_fusible(model: nn.Module, groups: Iterable[Record], settings: Record, given: Kwargs) -> bool:
    """Check whether torch has a fused step for these parameters and settings that is faster and gives the same numbers.

    Not with dampening, since a first step then differs from later ones, nor for plain SGD on a CPU, where it gains nothing.
    """
    parameters = list(model.parameters())
    kinds = {parameter.device.type for parameter in parameters}
    if any(given.get(name) is not None for name in _OWN_WAY) or not (kinds == {"cpu"} or kinds == {"cuda"}):
        return False
    if any(type(p) not in (nn.Parameter, Tensor) or p.dtype != torch.float32 for p in parameters):  # of fsdp
        return False
    of_groups = [{**settings, **group} for group in groups]
    if any(group.get("dampening") for group in of_groups):
        return False
    return kinds == {"cuda"} or all(group.get("momentum", 1) for group in of_groups)


def keep_fused(optimizer: Optimizer) -> None:
    """Make a fused optimizer survive gradients that begin late, other memory formats, and checkpoints of other implementations."""
    optimizer.register_step_pre_hook(_fill_in)
    optimizer.register_load_state_dict_pre_hook(_as_here)
    optimizer.register_load_state_dict_post_hook(_in_own_order)


def _fill_in(optimizer: Optimizer, *_: object) -> None:
    """Give SGD's parameters momentum before their first step, and gradients the order of their parameters in memory.

    The fused step takes no mixture of parameters with and without momentum, as in gradual unfreezing, and a first step that the
    device skips would leave the momentum unset. From zeros it is the gradient, as in a first step.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.stride() != p.stride():
                p.grad = _ordered_as(p, grad)
            if group.get("momentum") and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _ordered_as(p: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` with the strides of ``p``, a view where only those of dimensions of size 1 differ."""
    differs = any(mine != own for size, mine, own in zip(p.shape, value.stride(), p.stride(), strict=True) if size > 1)
    return torch.empty_like(p).copy_(value) if differs else value.as_strided(p.shape, p.stride())


def _as_here(optimizer: Optimizer, state: StateDict) -> StateDict:
    """Load the state of any implementation of the optimizer."""
    return {**state, "param_groups": [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]}


def _in_own_order(optimizer: Optimizer) -> None:
    """Bring loaded tensors into the order of their parameters in memory."""
    for p, state in optimizer.state.items():
        held: Mapping[str, object] = dict(state)
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = _ordered_as(p, value)
