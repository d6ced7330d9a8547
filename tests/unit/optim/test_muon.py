"""Muon: the polynomial and two steps computed by hand, and torch's implementation for matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz as orthogonalized
from torch.utils._python_dispatch import TorchDispatchMode

from tests.harness.states import assert_same
from up.engine.clip import Clip
from up.engine.precision import Precision, can_skip, step_unless
from up.errors import UserError
from up.optim import build_optimizer
from up.optim.muon import Muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.5, -1.0]])
GRADIENTS = (torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.1, -0.3]]), torch.tensor([[0.25, -1.0, 0.5], [-0.3, 0.1, 2.0]]))
BF16 = 0.02  # torch iterates in bf16, whose relative precision is 2^-8


def parameter(value: Tensor, *, channels_last: bool = False) -> nn.Parameter:
    made = value.clone(memory_format=torch.channels_last) if channels_last else value.clone()
    return nn.Parameter(made)


def stepped(optimizer: torch.optim.Optimizer, p: nn.Parameter, gradients: tuple[Tensor, ...] = GRADIENTS) -> Tensor:
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach()


def test_the_polynomial_by_hand() -> None:
    """x <- a x + b x^3 + c x^5 on a singular value of 0.5, five times; roundings of bf16 add up."""
    values = [0.5]
    for _ in range(5):
        x = values[-1]
        values.append(3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5)
    assert values[1:] == pytest.approx([1.188859, 0.896196, 0.824367, 0.937890, 0.765439], abs=1e-6)
    pair = torch.diag(torch.tensor([0.5, 0.75**0.5]))  # of Frobenius norm 1
    for steps in range(1, 6):
        assert float(orthogonalized(pair, COEFFICIENTS, steps, 1e-7)[0, 0]) == pytest.approx(values[steps], abs=3 * BF16)


def test_two_steps_by_hand() -> None:
    """Nesterov momentum .95, five iterations, lr .02, decoupled decay .1; computed in float64."""
    p = parameter(WEIGHT)
    optimizer = Muon([p], lr=0.02, weight_decay=0.1)
    first = stepped(optimizer, p, GRADIENTS[:1]).tolist()
    expected = [[0.995334, -1.975321, 0.492801], [2.980557, 0.494491, -0.994767]]
    assert [x for row in first for x in row] == pytest.approx([x for row in expected for x in row], abs=0.02 * BF16)
    second = stepped(optimizer, p, GRADIENTS[1:]).tolist()
    expected = [[0.988496, -1.956971, 0.485443], [2.968257, 0.492275, -1.011503]]
    assert [x for row in second for x in row] == pytest.approx([x for row in expected for x in row], abs=0.02 * 2 * BF16)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_a_matrix_steps_as_with_torch(nesterov: bool, shape: tuple[int, int]) -> None:
    gradients = tuple(gradient.reshape(shape) for gradient in GRADIENTS)
    ours, theirs = parameter(WEIGHT.reshape(shape)), parameter(WEIGHT.reshape(shape))
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov, "ns_steps": 3}
    got = stepped(Muon([ours], **settings), ours, gradients)  # type: ignore[arg-type]
    assert torch.equal(got, stepped(torch.optim.Muon([theirs], **settings), theirs, gradients))  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_is_a_matrix_of_its_filters(channels_last: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(4, 3, 2, 2, generator=draw) for _ in range(2))
    conv, flat = parameter(weight, channels_last=channels_last), parameter(weight.flatten(1))
    got = stepped(Muon([conv]), conv, (gradient, gradient))
    expected = stepped(torch.optim.Muon([flat], lr=0.02, weight_decay=0.0), flat, (gradient.flatten(1),) * 2)
    torch.testing.assert_close(got.flatten(1), expected, atol=0.02 * BF16, rtol=0)


def test_others_step_as_with_sgd() -> None:
    """Biases always, and under ``min_ndim: 4`` matrices as well."""
    ours, theirs = parameter(WEIGHT), parameter(WEIGHT)
    mine = Muon([ours], lr=0.05, min_ndim=4, sgd_momentum=0.85, weight_decay=0.01)
    sgd = torch.optim.SGD([theirs], lr=0.05, momentum=0.85, nesterov=True, weight_decay=0.01)
    torch.testing.assert_close(stepped(mine, ours), stepped(sgd, theirs), atol=1e-6, rtol=0)


def test_normalized_weights_have_the_norm_of_their_rows() -> None:
    """Frobenius norm sqrt(2) before the step, of which lr 0 leaves nothing."""
    p = parameter(WEIGHT)
    assert float(stepped(Muon([p], lr=0.0, normalize_weights=True), p).norm()) == pytest.approx(2**0.5)


def test_a_reload_continues_bit_equal() -> None:
    whole, first = parameter(WEIGHT), parameter(WEIGHT)
    expected = stepped(Muon([whole]), whole)
    optimizer = Muon([first])
    stepped(optimizer, first, GRADIENTS[:1])
    second = parameter(first.detach())
    resumed = Muon([second])
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(stepped(resumed, second, GRADIENTS[1:]), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_reload_continues_in_another_memory_format(channels_last: bool) -> None:
    """As a run does that begins on a GPU and resumes with ``channels_last: false``, or the other way round."""
    draw = torch.Generator().manual_seed(0)
    weight, *gradients = (torch.randn(4, 3, 2, 2, generator=draw) for _ in range(3))
    whole, first = (parameter(weight, channels_last=channels_last) for _ in range(2))
    expected = stepped(Muon([whole]), whole, tuple(gradients))
    optimizer = Muon([first])
    stepped(optimizer, first, tuple(gradients[:1]))
    second = parameter(first.detach().contiguous(), channels_last=not channels_last)
    resumed = Muon([second])
    resumed.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(stepped(resumed, second, tuple(gradients[1:])), expected, atol=0.02 * BF16, rtol=0)


def test_groups_of_a_net() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    rules = {"bn_b": {"lr": 1.0}, "conv_b": {"lr": 1.0}, "linear_w": {"lr": 10.0}}
    optimizer = build_optimizer(net, "Muon", lr=0.5, min_ndim=4, pconfig=rules)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.5, 1.0, 10.0]


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"ns_steps": 0}, {"min_ndim": 1}, {"lr": -1.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Muon([parameter(WEIGHT)], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_is_not_finite_leaves_no_trace(before: int, is_late: bool) -> None:
    """Under a dynamic loss scale, whether or not a device could skip a step on its own; matrices, and what steps as with SGD."""
    skipping, other = net(), net()
    optimizer, theirs = (
        build_optimizer(model, "Muon", lr=0.1, weight_decay=0.01, normalize_weights=True) for model in (skipping, other)
    )
    precision, plain = Precision(mode="fp16", device="cpu"), Precision(mode="fp16", device="cpu")
    precision.is_late = is_late
    for _ in range(before):
        assert one_step(skipping, optimizer, precision, 1.0).isfinite()
        assert one_step(other, theirs, plain, 1.0).isfinite()
    saved = copy.deepcopy(optimizer.state_dict())
    assert not one_step(skipping, optimizer, precision, float("nan")).isfinite()
    assert all(map(torch.equal, skipping.parameters(), other.parameters()))
    held = optimizer.state_dict()
    if is_late and not before:  # no host knows of the skipped step: momentum is there, and 0
        momenta = [state.pop("momentum_buffer") for state in held["state"].values()]
        assert len(momenta) == 4
        assert not any(momentum.any() for momentum in momenta)
        held["state"].clear()
    assert_same(held, saved)
    for model, each, how in ((skipping, optimizer, precision), (other, theirs, plain)):
        one_step(model, each, how, 1.0)
    assert all(map(torch.equal, skipping.parameters(), other.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("min_ndim", [2, 4])
@pytest.mark.parametrize("before", [0, 2])
def test_a_device_skips_a_step_of_its_own_without_the_host(value: float, min_ndim: int, before: int) -> None:
    skipping, other = convolutions(), convolutions()
    optimizer, theirs = (
        build_optimizer(model, "Muon", lr=0.1, weight_decay=0.01, normalize_weights=True, min_ndim=min_ndim)
        for model in (skipping, other)
    )
    assert can_skip(optimizer)
    for each in (optimizer, theirs):
        noisy_steps(each, before)
    for p in skipping.parameters():
        p.grad = torch.full_like(p, value)
    with NothingRead():
        step_unless(torch.ones(()), optimizer)
    assert all(map(torch.equal, skipping.parameters(), other.parameters()))
    noisy_steps(optimizer, 2, skipped=torch.zeros(()))
    noisy_steps(theirs, 2)
    assert all(map(torch.equal, skipping.parameters(), other.parameters()))


class NothingRead(TorchDispatchMode):
    """Fails where the host reads a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def noisy_steps(optimizer: torch.optim.Optimizer, number: int, skipped: Tensor | None = None) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        step_unless(skipped, optimizer)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2), nn.Flatten(), nn.Linear(6, 2))
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, factor: float) -> Tensor:
    precision.backward((model(torch.ones(2, 6)) * factor).sum())
    return precision.step(optimizer, Clip())
