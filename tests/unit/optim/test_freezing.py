"""Which parameters train at which step, by formula; L2-SP's gradient; stages of a schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.harness.facts import tells
from up.models.net import Net
from up.optim import build_schedule
from up.optim.freezing import Freezing
from up.optim.groups import module_depths
from up.optim.l2sp import L2SP
from up.optim.schedules import Staged


class Body(nn.Module):
    """Five modules with parameters, one of them a norm, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        )

    def forward(self, record: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"features": self.layers(record["image"])}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 2)

    def forward(self, record: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.classifier(record["features"])}


def net() -> Net:
    torch.manual_seed(0)
    return Net([("backbone", Body()), ("head", Head())]).train()


def trained(net: Net) -> set[str]:
    return {name.rpartition(".")[0] for name, p in net.named_parameters() if p.requires_grad}


def test_gradual_unfreezing_by_its_formula() -> None:
    model = net()
    depth = max(module_depths(model).values()) + 1
    assert depth == 6
    rule = Freezing(model, model.hold, steps_per_epoch=10, blocks=3)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))
    for epoch, top in ((1, 2), (2, 4), (3, 6), (9, 6)):
        for step in (10 * (epoch - 1), 10 * epoch - 1):
            rule.apply(step)
            assert trained(model) == set(modules[depth - top :]), (epoch, step)
    print("\n".join(rule.lines()))
    assert [line.split(":")[0] for line in rule.lines()] == ["from epoch 1", "from epoch 2", "from epoch 3"]


def test_any_step_may_follow_another() -> None:
    """An estimate of a run measures its last step after its first."""
    model = net()
    rule = Freezing(model, model.hold, steps_per_epoch=10, blocks=3)
    for step in (0, 29, 5, 15):
        rule.apply(step)
        assert trained(model) == {name.rpartition(".")[0] for name, _ in model.named_parameters()} - {
            name.rpartition(".")[0] for name in rule.at(step)
        }


def test_the_last_module_always_trains() -> None:
    model = net()
    rule = Freezing(model, model.hold, steps_per_epoch=1, blocks=100)
    rule.apply(0)
    assert trained(model) == {"head.classifier"}


def test_what_is_frozen_from_the_start_never_trains() -> None:
    model = net()
    model.freeze(["backbone.layers.0"])
    rule = Freezing(model, model.hold, steps_per_epoch=1, blocks=3)
    for step in range(4):
        rule.apply(step)
        assert not {name for name in trained(model) if name.startswith("backbone.layers.0")}
        assert not model.get_submodule("backbone.layers.0.1").training
    assert tells([*rule.lines()][-1], "epoch 2", "8 tensors", "backbone.layers.1.weight")


def test_modules_at_rest_are_in_evaluation_mode() -> None:
    model = net()
    rule = Freezing(
        model, model.hold, steps_per_epoch=1, head=frozenset({"head.classifier.weight", "head.classifier.bias"}), probe_epochs=1
    )
    rule.apply(0)
    body = model["backbone"]
    assert isinstance(body, Body)
    assert not body.training
    assert not any(module.training for module in body.modules())
    assert model["head"].training
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()(dict(image=torch.randn(8, 4)))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    rule.apply(1)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_frozen_weights_stand_and_late_ones_count_their_own_steps(kind: str) -> None:
    """Neither weight decay nor moments move a frozen parameter; one that joins late is corrected from its own first step."""
    model = net()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, weight_decay=0.1)
    rule = Freezing(model, model.hold, steps_per_epoch=2, blocks=3)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(4):
        rule.apply(step)
        model(dict(image=torch.randn(8, 4)))["logits"].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name in rule.at(step):
            assert torch.equal(model.get_parameter(name), first[name])
    if kind != "SGD":
        late = model.get_parameter("backbone.layers.1.weight")  # trains from epoch 2 on
        assert int(optimizer.state[late]["step"]) == 2
        assert int(optimizer.state[model.get_parameter("head.classifier.weight")]["step"]) == 4


def test_the_highest_rate_of_a_long_run_is_at_the_end_of_its_warm_up() -> None:
    settings = {"warmup_register_type": "no_scale_lr", "warmup_ratio": 0.1, "warmup_iter": 502, "warmup_type": "linear"}
    main = build_schedule("linear", base_lr=1.0, updates_per_epoch=1003, total_updates=8_000, **settings)
    assert Staged(main, first=1003, first_lr=0.5).extremes(9_003)[:2] == (0.5, (1003 + 501, 1.0))


def test_l2sp_adds_the_gradient_of_its_penalty() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(3, 2)
    start = {"weight": torch.randn(2, 3)}
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    l2sp = L2SP(dict(layer.named_parameters()), start, weight=0.25)
    (expected,) = torch.autograd.grad(0.25 * (layer.weight - start["weight"]).square().sum(), [layer.weight])
    l2sp.attach(optimizer)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    loss = layer(torch.ones(1, 3)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    own = torch.ones(2, 3)
    optimizer.step()
    assert torch.allclose(layer.weight, before - own - expected)
    assert torch.allclose(layer.bias, bias - 1)  # not in `start`: no penalty
    optimizer.zero_grad(set_to_none=True)
    before = layer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, before)  # without a gradient nothing moves


def test_stages_of_a_schedule() -> None:
    main = build_schedule("linear", base_lr=1.0, updates_per_epoch=10, total_updates=20, warmup_register_type="no_scale_lr")
    staged = Staged(main, first=10, first_lr=0.5, last_from=25, last_lr=0.01)
    assert [staged(step) for step in (0, 9, 10, 20, 24, 25, 29)] == pytest.approx([0.5, 0.5, 1.0, 0.5, 0.3, 0.01, 0.01])


def test_warmup_share() -> None:
    schedule = build_schedule(
        "linear",
        base_lr=1.0,
        updates_per_epoch=10,
        total_updates=50,
        warmup_share=0.1,
        warmup_type="linear",
        warmup_ratio=0.0,
        warmup_register_type="no_scale_lr",
    )
    assert [schedule(step) for step in (0, 4, 5, 50)] == pytest.approx([0.0, 1.0, 1.0, 0.0])
    assert schedule(28) == pytest.approx(1 - 23 / 45)
