"""The formulas of every strategy at stated steps, on the parameters of five networks, computed anew from their definitions."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import timm
from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer

from up.optim import Schedule, build_optimizer, build_schedule, group_table, set_lr
from up.optim.freezing import Freezing
from up.schema.strategies import STRATEGIES

NETS = {
    "resnet18": {},
    "mobilenetv3_small_100": {},
    "convnext_atto": {"img_size": None},
    "vit_tiny_patch16_224": {"img_size": 32},
    "swin_tiny_patch4_window7_224": {"img_size": 56},
}
PER_EPOCH, EPOCHS = 20, 5
TOTAL = PER_EPOCH * EPOCHS
STEPS = (0, 1, 5, 9, 10, 11, 20, 50, 99)


@cache
def net(name: str) -> nn.Module:
    kwargs = {key: value for key, value in NETS[name].items() if value is not None}
    model = nn.Module()
    model.backbone = timm.create_model(name, num_classes=0, **kwargs)
    model.head = nn.Linear(model.backbone.num_features, 5)
    return model


def built(name: str, strategy: str, batch: int = 64) -> tuple[Optimizer, Schedule]:
    trainer: dict[str, Any] = STRATEGIES[strategy]()["trainer"]
    optimizer = trainer["optimizer"]
    made = build_optimizer(net(name), optimizer["type"], pconfig=optimizer.get("pconfig"), **optimizer["kwargs"])
    schedule = build_schedule(
        **trainer["lr_scheduler"],
        base_lr=optimizer["kwargs"]["lr"],
        updates_per_epoch=PER_EPOCH,
        total_updates=TOTAL,
        global_batch_size=batch,
    )
    return made, schedule


def by_name(name: str, optimizer: Optimizer, setting: str) -> dict[str, float]:
    names = {id(p): key for key, p in net(name).named_parameters()}
    return {names[id(p)]: group[setting] for group in optimizer.param_groups for p in group["params"]}


def depths(name: str) -> dict[str, int]:
    """Modules with parameters in the order of ``named_parameters``, from 0."""
    order = list(dict.fromkeys(key.rpartition(".")[0] for key, _ in net(name).named_parameters()))
    return {key: order.index(key.rpartition(".")[0]) for key, _ in net(name).named_parameters()}


@pytest.mark.parametrize("name", NETS)
def test_ulmfit(name: str) -> None:
    """Slanted triangle: p = t / cut, else 1 - (t - cut) / (T - cut); lr (1 + p (ratio - 1)) / ratio / 2.6^k in group k of 3."""
    optimizer, schedule = built(name, "ulmfit")
    cut, ratio, lr = TOTAL * 0.1, 32, 1e-4
    depth = max(depths(name).values()) + 1
    group = {key: (depth - 1 - at) * 3 // depth for key, at in depths(name).items()}
    assert set(group.values()) == {0, 1, 2}
    for step in STEPS:
        p = step / cut if step < cut else 1 - (step - cut) / (TOTAL - cut)
        peak = lr * (1 + p * (ratio - 1)) / ratio
        set_lr(optimizer, schedule(step))
        found = by_name(name, optimizer, "lr")
        print(f"{name} ulmfit step {step}: lr {peak:.3e} {peak / 2.6:.3e} {peak / 2.6**2:.3e}")
        for key, k in group.items():
            assert found[key] == pytest.approx(peak / 2.6**k)
    rule = Freezing(net(name), lambda held: None, PER_EPOCH, blocks=3)
    for epoch in range(1, EPOCHS + 1):
        top = min(depth, depth * epoch // 3)
        held = {key for key, at in depths(name).items() if at < depth - top}
        print(f"{name} ulmfit epoch {epoch}: {top} of {depth} modules train")
        assert rule.at((epoch - 1) * PER_EPOCH) == rule.at(epoch * PER_EPOCH - 1) == held


@pytest.mark.parametrize("name", NETS)
def test_default(name: str) -> None:
    """Cosine after a warm-up of 10 %; lr 0.9^(layers above), the layers being timm's own groups and the head."""
    optimizer, schedule = built(name, "default")
    inside = group_parameters(net(name).backbone, net(name).backbone.group_matcher(coarse=False), reverse=True)
    top = max(inside.values()) + 1
    layer = {**{f"backbone.{key}": at for key, at in inside.items()}, "head.weight": top, "head.bias": top}
    for step in STEPS:
        lr = 1e-4 * step / 9 if step < 10 else 1e-4 * (1 + math.cos(math.pi * (step - 10) / (TOTAL - 10))) / 2
        set_lr(optimizer, schedule(step))
        found = by_name(name, optimizer, "lr")
        print(f"{name} default step {step}: head {found['head.weight']:.3e}, first layer {min(found.values()):.3e}")
        for key, at in layer.items():
            assert found[key] == pytest.approx(lr * 0.9 ** (top - at), abs=1e-15)
    assert set(by_name(name, optimizer, "weight_decay").values()) == {1e-3}
    rows = group_table(optimizer, net(name))
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in net(name).parameters())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("strategy", ["adam", "adamw", "l2sp", "linear_probe", "lp_ft", "lora", "step150"])
def test_one_learning_rate_for_all(name: str, strategy: str) -> None:
    optimizer, schedule = built(name, strategy)
    warm = 1 / 9
    expected = {
        "adam": lambda t: 1e-4,
        "l2sp": lambda t: 1e-4,
        "adamw": lambda t: 1e-4 * (t * warm if t < 10 else 1 - (t - 10) / (TOTAL - 10)),
        "linear_probe": lambda t: 1e-3 * (1 + math.cos(math.pi * t / TOTAL)) / 2,
        "lp_ft": lambda t: 1e-4 * (t * warm if t < 10 else (1 + math.cos(math.pi * (t - 10) / (TOTAL - 10))) / 2),
        "lora": lambda t: 5e-4 * (t * warm if t < 10 else (1 + math.cos(math.pi * (t - 10) / (TOTAL - 10))) / 2),
        "step150": lambda t: 0.1 * 0.1 * 64 / 256,
    }[strategy]
    for step in STEPS:
        set_lr(optimizer, schedule(step))
        print(f"{name} {strategy} step {step}: lr {expected(step):.3e}")
        (lr,) = set(by_name(name, optimizer, "lr").values())
        assert lr == pytest.approx(expected(step), abs=1e-15)
    decay = by_name(name, optimizer, "weight_decay")
    if strategy == "adamw":
        for key, p in net(name).named_parameters():
            assert decay[key] == (0.0 if p.ndim <= 1 else 0.01), key
    else:
        wanted = {"adam": 1e-3, "l2sp": 0.0, "linear_probe": 0.0, "lp_ft": 1e-3, "lora": 0.01, "step150": 1e-4}
        assert set(decay.values()) == {wanted[strategy]}


def test_step150_falls_every_50_epochs() -> None:
    trainer = STRATEGIES["step150"]()["trainer"]
    assert trainer["max_epoch"] == 150
    schedule = build_schedule(
        **trainer["lr_scheduler"],
        base_lr=trainer["optimizer"]["kwargs"]["lr"],
        updates_per_epoch=3,
        total_updates=450,
        global_batch_size=256,
    )
    values = [schedule(3 * epoch) for epoch in (0, 49, 50, 99, 100, 149)]
    assert values == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("cut_fraction", [0.0, 1.0])
def test_a_slanted_triangle_without_one_of_its_sides(cut_fraction: float) -> None:
    schedule = build_schedule(
        "slanted_triangle",
        base_lr=1.0,
        updates_per_epoch=10,
        total_updates=10,
        warmup_register_type="no_scale_lr",
        kwargs={"cut_fraction": cut_fraction},
    )
    values = [schedule(step) for step in range(10)]
    p = [t / 10 for t in range(10)] if cut_fraction else [1 - t / 10 for t in range(10)]
    assert values == pytest.approx([(1 + share * 31) / 32 for share in p])
