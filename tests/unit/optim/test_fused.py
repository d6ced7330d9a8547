"""Fused optimizers: the numbers of torch's plain ones, late gradients, checkpoints of other implementations, skipped steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from up.engine.precision import can_skip, step_unless
from up.optim import build_optimizer
from up.optim.fused import keep_implementation, keep_order

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
CASES = [("SGD", MOMENTUM), ("SGD", {**MOMENTUM, "nesterov": True}), ("AdamW", {"lr": 0.01, "eps": 0.1})]


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(16, 5)
    )
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, *, without: int = 0) -> list[Tensor]:
    """Train on noise; the first ``without`` parameters get no gradient. Returns the weights."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        model(torch.randn(6, 3, 4, 4, generator=generator)).square().mean().backward()
        for parameter in list(model.parameters())[:without]:
            parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def fused(model: nn.Module, name: str, **kwargs: Any) -> torch.optim.Optimizer:
    """Build the optimizer as on a GPU."""
    made: torch.optim.Optimizer = getattr(torch.optim, name)(model.parameters(), fused=True, **kwargs)
    keep_implementation(made)
    keep_order(made)
    return made


@pytest.mark.parametrize(
    ("name", "kwargs", "is_fused"),
    [
        ("SGD", MOMENTUM, False),  # on a CPU the numbers of earlier versions count more
        ("AdamW", {"lr": 0.01}, True),
        ("Adam", {"lr": 0.01, "amsgrad": True}, True),
        ("Adam", {"lr": 0.01, "foreach": True}, False),
        ("RMSprop", {"lr": 0.01}, False),
    ],
)
def test_which_are_fused_on_a_cpu(name: str, kwargs: dict[str, Any], is_fused: bool) -> None:
    optimizer = build_optimizer(net(), name, **kwargs)
    assert bool(optimizer.param_groups[0].get("fused")) == is_fused == can_skip(optimizer)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_trains_the_same_numbers(name: str, kwargs: dict[str, Any]) -> None:
    ours, plain = net(), net()
    optimizer, theirs = fused(ours, name, **kwargs), getattr(torch.optim, name)(plain.parameters(), **kwargs)
    for without in (2, 0):  # unfrozen late
        found, expected = steps(ours, optimizer, 3, without=without), steps(plain, theirs, 3, without=without)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@pytest.mark.parametrize("before", [0, 2])
def test_a_skipped_step_leaves_no_trace(name: str, kwargs: dict[str, Any], before: int) -> None:
    """Also the first, before which there is no momentum."""
    skipping, other = net(), net()
    optimizer, theirs = fused(skipping, name, **kwargs), fused(other, name, **kwargs)
    steps(skipping, optimizer, before)
    weights = steps(other, theirs, before)
    for parameter in skipping.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    step_unless(torch.ones(()), optimizer)
    assert all(torch.equal(old, new) for old, new in zip(weights, skipping.parameters(), strict=True))
    for parameter in [*skipping.parameters(), *other.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    step_unless(torch.zeros(()), optimizer)
    step_unless(None, theirs)
    assert all(torch.equal(mine, its) for mine, its in zip(skipping.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_loads_the_state_of_a_plain_optimizer_in_another_memory_format(name: str, kwargs: dict[str, Any]) -> None:
    plain = net().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    theirs = getattr(torch.optim, name)(plain.parameters(), **kwargs)
    steps(plain, theirs, 2)
    ours = net()
    ours.load_state_dict(plain.state_dict())
    optimizer = fused(ours, name, **kwargs)
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert can_skip(optimizer)
    first = next(ours.parameters())
    assert all(value.stride() == first.stride() for value in optimizer.state[first].values() if value.ndim)
    for mine, other in zip(steps(ours, optimizer, 2), steps(plain, theirs, 2), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_plain_optimizer_stays_plain_when_it_loads_the_state_of_a_fused_one() -> None:
    """As shards of fsdp do, whose parameters no fused step takes."""
    ours, other = net(), net()
    theirs = fused(other, "AdamW", lr=0.01)
    steps(other, theirs, 2)
    plain = build_optimizer(ours, "AdamW", lr=0.01, fused=False)
    plain.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert [group["fused"] for group in plain.param_groups] == [False] * len(plain.param_groups)
