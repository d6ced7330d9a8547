"""Every optimizer by name: ours, torch's, timm's."""

from __future__ import annotations

import inspect

import pytest
import timm.optim
import torch
from torch import nn

from tests.harness.facts import facts
from up.errors import UserError
from up.optim import build_optimizer
from up.optim.lamb import LAMB
from up.optim.optimizers import OPTIMIZERS
from up.registry import UnknownName


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def test_own_table() -> None:
    assert OPTIMIZERS.get("LAMB") is LAMB
    assert OPTIMIZERS.get("LARS") is timm.optim.Lars


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Adafactor"])
def test_torch_by_class_name(name: str) -> None:
    assert OPTIMIZERS.get(name) is getattr(torch.optim, name)


def test_timm_by_its_name_with_its_defaults() -> None:
    assert OPTIMIZERS.get("lion") is timm.optim.Lion
    bound = inspect.signature(OPTIMIZERS.get("nlars")).parameters
    assert bound["nesterov"].default is True
    assert bound["momentum"].default == 0.9  # timm's own factory sets it wherever there is a momentum


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(UnknownName, match=facts("optimizer", "'LAMP'", "'LAMB'")):
        OPTIMIZERS.get("LAMP")
    with pytest.raises(UnknownName, match="Did you mean 'AdamW'"):
        OPTIMIZERS.get("Adam_W")
    assert {"AdamW", "SGD", "lion", "adopt"} <= set(OPTIMIZERS.other_names())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("LBFGS", "evaluates the loss several times a step"),
        ("SparseAdam", "takes sparse gradients only"),
        ("adahessian", "needs second derivatives"),
    ],
)
def test_optimizers_that_no_loop_of_ours_can_drive(name: str, reason: str) -> None:
    assert name not in OPTIMIZERS.other_names()
    with pytest.raises(UserError, match=reason):
        OPTIMIZERS.get(name)


def test_missing_library_is_named() -> None:
    with pytest.raises(UserError, match="'fusedsgd' needs apex"):
        OPTIMIZERS.get("fusedsgd")


def test_every_listed_name_is_an_optimizer_with_a_rate() -> None:
    for name in OPTIMIZERS.other_names():
        if not name.startswith(("bnb", "fused")):  # those need a library of their own
            assert {"params", "lr"} <= set(inspect.signature(OPTIMIZERS.get(name)).parameters), name


@pytest.mark.parametrize(
    "name", ["LAMB", "LARS", "SGD", "AdamW", "Adagrad", "RMSprop", "Adafactor", "Rprop", "lion", "adopt", "nlars", "muon", "sgdp"]
)
def test_optimizers_lower_a_loss(name: str) -> None:
    torch.set_num_threads(1)
    model = net()
    optimizer = build_optimizer(model, name, lr=1e-2, pconfig={"ln_w": {"lr": 1e-3}})
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 4, generator=generator), torch.randint(0, 2, (16,), generator=generator)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [group["lr_scale"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1])


def test_kwargs_reach_the_optimizer() -> None:
    optimizer = build_optimizer(net(), "SGD", lr=0.3, momentum=0.9, nesterov=True)
    assert {key: optimizer.param_groups[0][key] for key in ("lr", "momentum", "nesterov", "lr_scale", "rule")} == {
        "lr": 0.3,
        "momentum": 0.9,
        "nesterov": True,
        "lr_scale": 1.0,
        "rule": "default",
    }


def test_resnet_strikes_back_recipe() -> None:
    """LAMB 5e-3, weight decay .02 on neither BN nor bias: two groups."""
    model = timm.create_model("test_resnet", num_classes=3)
    no_decay = {"type": "any", "kwargs": {"weight_decay": 0.0}}
    optimizer = build_optimizer(
        model, "LAMB", lr=5e-3, weight_decay=0.02, pconfig={"bn_b": no_decay, "bn_w": no_decay, "linear_b": no_decay}
    )
    decayed = {group["weight_decay"]: sum(p.ndim > 1 for p in group["params"]) for group in optimizer.param_groups}
    assert decayed == {0.02: sum(p.ndim > 1 for p in model.parameters()), 0.0: 0}


@pytest.mark.parametrize(
    ("type_", "kwargs", "text"),
    [
        ("SGD", {"lr": 0.1, "momentun": 0.9}, "momentun: .*Did you mean 'momentum'"),
        ("SGD", {"lr": -0.1}, "lr: got -0.1"),
        ("SGD", {"lr": 0.1, "nesterov": True}, "SGD: Nesterov momentum requires a momentum"),
        ("adafactor", {}, "lr: is missing"),
        ("Muon", {"lr": 0.1, "ns_steps": 0}, "ns_steps"),
        ("Rprop", {"lr": 0.1, "pconfig": {"linear_b": {"weight_decay": 0.0}}}, "pconfig.linear_b.kwargs.weight_decay: Rprop"),
    ],
)
def test_bad_settings_are_named(type_: str, kwargs: dict[str, float], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_optimizer(net(), type_, **kwargs)
