"""A step of LAMB on a CPU by an extension in C, in two passes over memory.

It is compared with the formula when it is first used; where they differ, and where the extension was not compiled, torch's
operations are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from up.optim.fused import is_dense
from up.types import Record

try:
    from up.optim import _lamb
except ImportError:  # there was no compiler, or torch has no OpenMP that shares its threads
    _lamb = None  # type: ignore[assignment]


def takes(parameter: Tensor, state: dict[str, Tensor]) -> bool:
    """Check whether the extension takes a parameter with its gradient and moments: dense float32 on a CPU, in one order."""
    if type(parameter) not in (Tensor, nn.Parameter) or not is_dense(parameter) or not agrees():
        return False
    held = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
    strides = parameter.stride()
    return all(
        each is not None
        and each.layout is torch.strided
        and each.stride() == strides
        and each.dtype is torch.float32
        and each.device.type == "cpu"
        for each in held
    )


def step(group: Record, params: Sequence[Tensor], states: Sequence[dict[str, Tensor]], divisor: float) -> None:
    """Update parameters of a group and their moments, whose ``step`` counts this step already.

    Gradients are divided by ``divisor``, and stay. The result does not depend on the number of threads, which is torch's.
    """
    betas: tuple[float, float] = tuple(group["betas"])
    memory = [
        (p.data_ptr(), p.grad.data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr(), p.numel())
        for p, state in zip(params, states, strict=True)
        if p.grad is not None
    ]
    corrections = np.ones((len(memory), 2))
    if group["bias_correction"]:
        steps = [state["step"].item() for state in states]
        corrections[:] = [[1 - beta**number for beta in betas] for number in steps]
    is_adapted = group["weight_decay"] != 0 or group["always_adapt"]
    _lamb.step(
        np.array(memory, np.int64),
        corrections,
        float(group["lr"]),
        betas,
        group["eps"],
        group["weight_decay"],
        divisor,
        is_adapted,
        group["trust_clip"],
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version(params)  # as torch's operations in place do


@cache
def agrees() -> bool:
    """Compare the extension with the formula on two small tensors; False without the extension."""
    if _lamb is None:
        return False
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(size, generator=generator)) for size in (1, 1999)]
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1, "bias_correction": True}
    group |= {"always_adapt": False, "trust_clip": False}
    states, expected = [], []
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
        mean, square = torch.randn(p.shape, generator=generator), torch.rand(p.shape, generator=generator)
        states.append({"step": torch.tensor(3.0), "exp_avg": mean, "exp_avg_sq": square})
        weight, grad = p.detach().double(), p.grad.double() / 2
        means, squares = 0.9 * mean.double() + 0.1 * grad, 0.99 * square.double() + 0.01 * grad**2
        update = means / (1 - 0.9**3) / ((squares / (1 - 0.99**3)).sqrt() + 1e-3) + 0.1 * weight
        expected += [weight - 0.1 * update * (weight.norm() / update.norm()), means, squares]
    step(group, params, states, 2.0)
    found = [each for p, state in zip(params, states, strict=True) for each in (p.detach(), state["exp_avg"], state["exp_avg_sq"])]
    return all(torch.allclose(own.double(), each, rtol=1e-5, atol=1e-6) for own, each in zip(found, expected, strict=True))
