"""The extension that steps LAMB on a CPU, beside torch's operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from up.engine.precision import can_skip, step_unless
from up.optim import lamb_native
from up.optim.lamb import LAMB

pytestmark = pytest.mark.skipif(lamb_native._lamb is None, reason="not compiled: python setup.py build_ext --inplace")

SHAPES = [(1,), (0, 3), (7, 9), (4, 3, 3, 3), (129, 1031), (66_000,), ()]  # one that two passes share out, and tails of all kinds
SETTINGS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.3]),
        "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.6, 0.0)]),
        "eps": st.sampled_from([1e-6, 1e-2]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
        "bias_correction": st.booleans(),
        "max_grad_norm": st.sampled_from([None, 1.0, 1e4]),
        "trust_clip": st.booleans(),
        "always_adapt": st.booleans(),
    }
)


@contextmanager
def torch_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lamb_native, "takes", lambda parameter, state: False)
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    made[3].data = made[3].data.to(memory_format=torch.channels_last)
    nn.init.zeros_(made[2])  # its trust ratio is 1
    return made


def stepped(optimizer: LAMB, number: int = 1, *, first: int = 0, scale: float = 1.0) -> None:
    for step in range(first, first + number):
        generator = torch.Generator().manual_seed(step)
        for p in optimizer.param_groups[0]["params"]:
            p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
        optimizer.step()


def held(optimizer: LAMB) -> list[Tensor]:
    """Weights and state."""
    params: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    return [each.detach() for p in params for each in (p, *optimizer.state[p].values())]


def expect_close(optimizer: LAMB, other: LAMB, tolerance: float = 1e-5) -> None:
    for at, (mine, its) in enumerate(zip(held(optimizer), held(other), strict=True)):
        largest = its.abs().max().item() if its.numel() else 1.0
        if at % 4 == 0:  # a weight, which began at about 1 and may have come near to 0
            largest = max(largest, 1.0)
        torch.testing.assert_close(mine.to(its.dtype), its, rtol=tolerance, atol=tolerance * largest)


def test_it_agrees_here() -> None:
    """Otherwise it would not be used."""
    assert lamb_native.agrees()


@given(kwargs=SETTINGS, scale=st.sampled_from([1e-3, 1.0, 100.0]))
@settings(max_examples=40, deadline=None)
def test_it_steps_as_torch_does(kwargs: dict[str, Any], scale: float) -> None:
    """Double precision is torch's alone; its norms in single precision are off by up to 1e-4."""
    exact = [nn.Parameter(p.detach().double()) for p in weights()]
    optimizer, single, double = (LAMB(params, **kwargs) for params in (weights(), weights(), exact))
    for each in (optimizer, double):
        stepped(each, 3, scale=scale)
    with torch_alone():
        stepped(single, 3, scale=scale)
    expect_close(optimizer, double, 2e-6)
    expect_close(optimizer, single, 1e-4)


@pytest.mark.parametrize("number", [2, 3, 100])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_threads_change_no_bit(number: int, weight_decay: float) -> None:
    single, several = (LAMB(weights(), lr=0.1, weight_decay=weight_decay) for _ in range(2))
    with threads(1):
        stepped(single, 3)
    with threads(number):
        stepped(several, 3)
    assert all(map(torch.equal, held(single), held(several)))


def test_it_takes_all_parameters_but_those_of_other_types_and_spread_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [*weights(), nn.Parameter(torch.randn(6, 8)[:, ::2]), nn.Parameter(torch.randn(5).double())]
    taken: list[Tensor] = []
    step = lamb_native.step
    monkeypatch.setattr(lamb_native, "step", lambda group, native, *rest: (taken.extend(native), step(group, native, *rest)))
    before = [p.detach().clone() for p in params]
    optimizer = LAMB(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert list(map(id, taken)) == list(map(id, params[:-2]))
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True) if p.numel())


def test_rows_of_a_larger_matrix_step_as_the_matrix_does() -> None:
    """A parameter that is a view of memory which it does not fill."""
    matrix = torch.randn(6, 8)
    kept = matrix[:, 1::2].clone()
    params = nn.Parameter(matrix[:, ::2]), nn.Parameter(matrix[:, ::2].clone())
    for p in params:
        optimizer = LAMB([p], lr=0.1)
        p.grad = torch.arange(24.0).view(6, 4)
        optimizer.step()
    torch.testing.assert_close(*params)
    assert torch.equal(matrix[:, 1::2], kept)


def test_gradients_stay() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([3.0, 4.0, 0.0])
    LAMB([p]).step()
    assert p.grad.tolist() == [3.0, 4.0, 0.0]


def test_autograd_sees_that_weights_have_changed() -> None:
    p = nn.Parameter(torch.ones(3))
    loss = p.square().sum()  # keeps p for its backward pass
    p.grad = torch.ones(3)
    LAMB([p]).step()
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("before", [0, 2])
def test_a_skipped_step_leaves_no_trace(value: float, before: int) -> None:
    skipping, other = LAMB(weights(), lr=0.1), LAMB(weights(), lr=0.1)
    assert can_skip(skipping)
    for optimizer in (skipping, other):
        stepped(optimizer, before)
    for p in skipping.param_groups[0]["params"]:
        p.grad = torch.full_like(p, value)
    step_unless(torch.ones(()), skipping)
    for optimizer in (skipping, other):
        stepped(optimizer, 2, first=before)
    assert all(map(torch.equal, held(skipping), held(other)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_without_a_word_of_skipping_what_is_not_finite_shows(value: float) -> None:
    optimizer = LAMB(weights())
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.full_like(p, value)
    optimizer.step()
    assert all(p.isnan().all() for p in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("native_first", [False, True])
def test_continues_from_the_state_of_the_other_way_and_back(native_first: bool) -> None:
    straight, changing = LAMB(weights(), lr=0.1), LAMB(weights(), lr=0.1)
    stepped(straight, 3)
    for step in range(3):
        resumed = LAMB([nn.Parameter(p.detach().clone()) for p in changing.param_groups[0]["params"]], lr=0.1)
        resumed.load_state_dict(copy.deepcopy(changing.state_dict()))
        changing = resumed
        if native_first == (step % 2 == 0):
            stepped(changing, first=step)
        else:
            with torch_alone():
                stepped(changing, first=step)
    expect_close(changing, straight)


def test_parameters_of_another_age_are_corrected_by_their_own_steps() -> None:
    optimizer, other = LAMB(weights(), lr=0.1), LAMB(weights(), lr=0.1)
    for each in (optimizer, other):
        params = each.param_groups[0]["params"]
        with pytest.MonkeyPatch.context() as patch:
            if each is other:
                patch.setattr(lamb_native, "takes", lambda parameter, state: False)
            params[-1].grad = torch.ones_like(params[-1])
            each.step()
            stepped(each, 2)
    expect_close(optimizer, other)


def test_wrong_memory_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected 5 integers"):
        lamb_native._lamb.step(bytes(8), bytes(16), 0.1, (0.9, 0.9), 0.1, 0.1, 1.0, True, False, 1)  # type: ignore[arg-type]
