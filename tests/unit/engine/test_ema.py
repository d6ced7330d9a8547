"""Averaged weights: printed values, timm as oracle, exact exchange with the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tests.harness.facts import facts
from up.engine.ema import Ema, NoEma, build_ema
from up.errors import UserError


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def averages_of_one(**kwargs: float) -> list[float]:
    """A weight that starts at 0 and stays at 1: what the average reads after each of three steps."""
    model = Scalar(0.0)
    ema = Ema(model, **kwargs)
    model.weight.data.fill_(1.0)
    seen = []
    for step in (1, 2, 3):
        ema.update(model, step)
        seen.append(ema.state_dict()["weight"].item())
    return seen


def test_golden_without_warmup() -> None:
    assert averages_of_one(decay=0.9) == pytest.approx([0.1, 0.19, 0.271], abs=1e-12)


def test_golden_with_warmup_of_ten() -> None:
    assert averages_of_one(decay=0.9, warmup=10) == pytest.approx([0.9, 0.981818, 0.995455], abs=5.1e-7)


def test_exponential_decay() -> None:
    ema = Ema(Scalar(0.0), ema_type="exp", decay=0.999)
    assert ema.decay_at(0) == 0.0
    assert ema.decay_at(2000) == pytest.approx(0.999 * (1 - math.exp(-1)), abs=1e-15)
    assert ema.decay_at(10**6) == pytest.approx(0.999, abs=1e-12)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


def train_a_little(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
        model.train()(torch.randn(2, 3, 8, 8))


def test_equals_timm() -> None:
    model = net()
    ours, theirs = Ema(model, decay=0.97), ModelEmaV3(model, decay=0.97)
    for step in range(1, 6):
        train_a_little(model)
        ours.update(model, step)
        theirs.update(model)
    expected = theirs.module.state_dict()
    assert set(ours.state_dict()) == set(expected)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = net()
    before = model[1].running_mean.clone()
    ema = Ema(model, decay=0.75)
    train_a_little(model)
    ema.update(model, 1)
    state = ema.state_dict()
    torch.testing.assert_close(state["1.running_mean"], 0.75 * before + 0.25 * model[1].running_mean)
    assert state["1.num_batches_tracked"].item() == 1
    assert state["1.num_batches_tracked"].dtype == torch.int64


def test_inner_t_updates_every_second_step() -> None:
    model = Scalar(0.0)
    ema = Ema(model, decay=0.5, inner_T=2)
    model.weight.data.fill_(1.0)
    seen = []
    for step in (1, 2, 3, 4):
        ema.update(model, step)
        seen.append(ema.state_dict()["weight"].item())
    assert seen == [0.0, 0.5, 0.5, 0.75]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluates_the_average_and_trains_on(context: Callable[[], AbstractContextManager[None]]) -> None:
    model = net().to(memory_format=torch.channels_last)
    ema = Ema(model, decay=0.9)
    train_a_little(model)
    ema.update(model, 1)
    x, average = torch.randn(2, 3, 8, 8), net()
    average.load_state_dict(ema.state_dict())
    with context(), ema.applied_to(model):
        seen = model.eval()(x)
    torch.testing.assert_close(seen, average.eval()(x).detach(), rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().sum().backward()
    optimizer.step()
    ema.update(model, 2)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert ema.state_dict()["0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_applied_to_puts_the_average_in_place_and_back_bit_for_bit() -> None:
    model = net()
    ema = Ema(model, decay=0.9)
    train_a_little(model)
    ema.update(model, 1)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    average = {name: value.clone() for name, value in ema.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]

    def failing_evaluation() -> None:
        with ema.applied_to(model):
            assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())
            raise KeyError("evaluation failed")

    with pytest.raises(KeyError):
        failing_evaluation()
    assert all(torch.equal(value, raw[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in ema.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_shared_weights_survive_the_exchange() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    ema = Ema(model, decay=0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    raw = model[0].weight.detach().clone()
    ema.update(model, 1)
    with ema.applied_to(model):
        torch.testing.assert_close(model[1].weight.detach(), start + 0.5)
    assert torch.equal(model[0].weight, raw)
    assert torch.equal(ema.state_dict()["1.weight"], ema.state_dict()["0.weight"])


def test_starts_from_the_loaded_weights() -> None:
    model = Scalar(0.0)
    model.weight.data.fill_(7.0)
    ema = Ema(model, decay=0.9)
    model.weight.data.fill_(8.0)
    ema.update(model, 1)
    assert ema.state_dict()["weight"].item() == pytest.approx(7.1)


def test_state_dict_resumes_exactly() -> None:
    model = net()
    straight = Ema(model, decay=0.9)
    train_a_little(model)
    straight.update(model, 1)
    saved = {name: value.clone() for name, value in straight.state_dict().items()}
    resumed = Ema(model, decay=0.9)
    resumed.load_state_dict(saved)
    train_a_little(model)
    straight.update(model, 2)
    resumed.update(model, 2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())


def test_load_refuses_other_tensors() -> None:
    ema = Ema(Scalar(0.0), decay=0.9)
    with pytest.raises(UserError, match=facts("EMA", "state", "ema.enable")):
        ema.load_state_dict(NoEma().state_dict())
    with pytest.raises(UserError, match=facts("EMA", "tensor", "weight")):
        ema.load_state_dict({"wait": torch.zeros(1)})
    with pytest.raises(UserError, match=facts("tensors", "model", "lacks")):
        ema.load_state_dict({"weight": torch.zeros(1), "wait": torch.zeros(1)})
    with pytest.raises(UserError, match=r"weight is \(2,\), expected \(1,\)"):
        ema.load_state_dict({"weight": torch.zeros(2)})


def test_disabled_ema_has_the_same_interface() -> None:
    model = Scalar(3.0)
    off = build_ema(model, enable=False)
    off.update(model, 1)
    off.load_state_dict(off.state_dict())
    with off.applied_to(model):
        assert model.weight.item() == 3.0
    assert off.state_dict() == {}
    assert isinstance(off, NoEma)
    public = {name for name in vars(Ema) if not name.startswith("_")} - {"decay_at"}
    assert public <= set(dir(NoEma))


def test_build_passes_kwargs() -> None:
    ema = build_ema(Scalar(0.0), enable=True, ema_type="exp", kwargs={"decay": 0.5, "inner_T": 3})
    assert isinstance(ema, Ema)
    assert ema.decay_at(10**6) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"decay": 1.5}, "decay: got 1.5, expected at most 1"),
        ({"decay": 0.9, "inner_T": 0}, "inner_T: got 0, expected at least 1"),
        ({"decay": 0.9, "warmup": 0}, "warmup: got 0, expected at least 1"),
        ({"decay": 0.9, "ema_type": "cubic"}, "ema_type: got 'cubic', expected one of linear, exp"),
    ],
)
def test_bad_settings_are_named(kwargs: dict[str, float], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Ema(Scalar(0.0), **kwargs)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(AssertionError, match="weight is torch.bfloat16"):
        Ema(nn.Linear(2, 2).bfloat16(), decay=0.9)
