"""torch's fused optimizers, which update a weight and its state in one pass: where they are used, and what keeps them right.

On CUDA devices they leave weights and state unchanged where ``found_inf`` is 1, without the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from up.types import Kwargs, Record, StateDict

_DEVICES: dict[object, tuple[str, ...]] = {
    torch.optim.SGD: ("cuda",),  # on a CPU it rounds tensors of odd sizes differently, and saves a hundredth of a step
    torch.optim.Adam: ("cuda", "cpu"),  # 2.7 times as fast on a CPU
    torch.optim.AdamW: ("cuda", "cpu"),
}
_IMPLEMENTATIONS = ("fused", "foreach", "capturable", "differentiable")  # arguments that choose another implementation


def is_fusible(make: object, model: nn.Module, groups: Iterable[Record], given: Kwargs) -> bool:
    """Check whether the optimizer ``make`` takes these parameters in one fused step.

    Not with dampening, since a first step then differs from later ones, nor with an implementation that is ``given``.
    """
    is_chosen = any(given.get(name) is not None for name in _IMPLEMENTATIONS)
    is_dampened = any({**given, **group}.get("dampening") for group in groups)
    if is_chosen or is_dampened:
        return False
    return all(is_plain(p) and p.device.type in _DEVICES.get(make, ()) for p in model.parameters())


def keep_implementation(optimizer: Optimizer) -> None:
    """Let an optimizer load the state of another implementation, such as a fused one, without switching to it."""
    optimizer.register_load_state_dict_pre_hook(_keep_own_implementation)


def keep_order(optimizer: Optimizer) -> None:
    """Keep gradients and state in the order of their parameters in memory, which fused kernels and Muon's matrices need."""
    optimizer.register_step_pre_hook(_order_and_fill)
    optimizer.register_load_state_dict_post_hook(_order_loaded)


def is_plain(parameter: Tensor) -> bool:
    """Check whether a parameter is one that fused kernels take: float32 on a CPU or CUDA device, not a shard of one."""
    return parameter.device.type in ("cpu", "cuda") and parameter.dtype is torch.float32 and not isinstance(parameter, DTensor)


def is_dense(tensor: Tensor) -> bool:
    """Check whether the elements of a tensor fill a part of memory, in any order of its dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _order_and_fill(optimizer: Optimizer, *_: object) -> None:
    """Give parameters of SGD and Muon momentum before their first step, and gradients the order of their parameters in memory.

    SGD's fused step takes no mixture of parameters with and without momentum, as in gradual unfreezing, and a first step that the
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


def _keep_own_implementation(optimizer: Optimizer, state: StateDict) -> StateDict:
    """Return the state with the implementation of ``optimizer``; unchanged for another number of groups, which torch reports."""
    own = [{name: group[name] for name in _IMPLEMENTATIONS if name in group} for group in optimizer.param_groups]
    groups = [{**group, **chosen} for group, chosen in zip(state["param_groups"], own, strict=False)]
    return {**state, "param_groups": groups if len(groups) == len(state["param_groups"]) else state["param_groups"]}


def _order_loaded(optimizer: Optimizer) -> None:
    """Bring loaded tensors into the order of their parameters in memory."""
    for p, state in optimizer.state.items():
        held: Mapping[str, object] = dict(state)
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = _ordered_as(p, value)
