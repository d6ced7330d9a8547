"""Which parameter gets which learning rate and weight decay."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import Optimizer

from tests.harness.facts import each_tells, facts
from up.errors import UserError
from up.optim import build_optimizer, group_table, lr_of, set_lr

LN = ("backbone.3.weight", "backbone.3.bias")
NO_DECAY = {"type": "any", "kwargs": {"weight_decay": 0.0}}


def net() -> nn.Sequential:
    """Backbone (conv without bias, BN, conv with bias, LN) and head, named as a `net:` list names them."""
    model = nn.Sequential()
    model.add_module(
        "backbone", nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.LayerNorm(6))
    )
    model.add_module("head", nn.Linear(96, 10))
    return model


def built(model: nn.Module, **kwargs: Any) -> Optimizer:
    return build_optimizer(model, "SGD", **{"lr": 0.1, "weight_decay": 0.05, **kwargs})


def settings(model: nn.Module, optimizer: Optimizer, option: str = "weight_decay") -> dict[str, Any]:
    """The option of the group that each parameter is in."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group[option] for group in optimizer.param_groups for p in group["params"]}


def undecayed(model: nn.Module, pconfig: dict[str, Any], **kwargs: Any) -> set[str]:
    return {name for name, wd in settings(model, built(model, pconfig=pconfig, **kwargs)).items() if wd == 0.0}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("bn_w", {"backbone.1.weight"}),
        ("bn_b", {"backbone.1.bias"}),
        ("ln_w", {"backbone.3.weight"}),
        ("ln_b", {"backbone.3.bias"}),
        ("linear_w", {"head.weight"}),
        ("linear_b", {"head.bias"}),
        ("linear", {"head.bias"}),
        ("conv_w", {"backbone.0.weight", "backbone.2.weight"}),
        ("conv_b", {"backbone.2.bias"}),
    ],
)
def test_class_rules(rule: str, expected: set[str]) -> None:
    assert undecayed(net(), {rule: NO_DECAY}) == expected
    assert undecayed(net(), {rule: {"weight_decay": 0.0}}) == expected  # the short form


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (nn.BatchNorm1d(4), "bn"),
        (nn.SyncBatchNorm(4), "bn"),
        (BatchNormAct2d(4), "bn"),
        (LayerNorm2d(4), "ln"),
        (nn.GroupNorm(2, 4), "ln"),
        (nn.RMSNorm(4), "ln"),
        (RmsNorm(4), "ln"),
        (nn.InstanceNorm2d(4, affine=True), "ln"),
        (nn.MultiheadAttention(4, 2), "linear"),
        (nn.ConvTranspose2d(4, 4, 2), "conv"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_subclasses_follow_their_kind(layer: nn.Module, rule: str) -> None:
    rules = {"bn_w", "ln_w", "linear_w", "conv_w"}
    for other in rules:
        found = undecayed(nn.Sequential(layer), {other: NO_DECAY})
        assert bool(found) == (other == f"{rule}_w"), other


@pytest.mark.parametrize(
    ("nodecay", "expected"),
    [
        (["ndim_is1"], {"backbone.1.weight", "backbone.1.bias", "backbone.2.bias", *LN, "head.bias"}),
        (["head", "backbone.0"], {"head.weight", "head.bias", "backbone.0.weight"}),
        ("head.weight", {"head.weight"}),
        ([], set()),
    ],
)
def test_nodecay(nodecay: Any, expected: set[str]) -> None:
    assert undecayed(net(), {"nodecay": nodecay}) == expected
    assert undecayed(net(), {"nodecay": {"value": nodecay}}) == expected


@pytest.mark.parametrize(
    "nested",
    [{"weight_decay": 0.1, "nodecay": {"value": ["head"]}}, {"type": "x", "kwargs": {"weight_decay": 0.1, "nodecay": ["head"]}}],
)
def test_nodecay_nested_in_another_rule_holds_for_all(nested: dict[str, Any]) -> None:
    model = net()
    decays = settings(model, built(model, pconfig={"bn_w": nested, "nodecay": ["backbone.0"]}))
    assert {name for name, wd in decays.items() if wd == 0.0} == {"head.weight", "head.bias", "backbone.0.weight"}
    assert decays["backbone.1.weight"] == 0.1


def test_nodecay_nested_in_layer_decay() -> None:
    rule = {"type": "vit", "value": 0.5, "nodecay": {"value": ["ndim_is1"]}}
    assert "head.bias" in undecayed(net(), {"layer_decay": rule})


def test_scalars_count_as_one_dimensional() -> None:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    assert undecayed(model, {"nodecay": ["ndim_is1"]}) == {"bias", "scale"}


def test_one_group_for_each_distinct_setting() -> None:
    pconfig = {rule: NO_DECAY for rule in ("bn_w", "bn_b", "ln_w", "ln_b", "linear_b", "conv_b")}
    optimizer = built(net(), pconfig=pconfig)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 6]
    assert each_tells(
        [group["rule"] for group in optimizer.param_groups], ("default",), ("bn_w", "bn_b", "conv_b", "ln_w", "ln_b", "linear_b")
    )


def test_a_rule_that_says_what_holds_anyway_adds_no_group() -> None:
    assert len(built(net(), pconfig={"bn_w": {"weight_decay": 0.05}}).param_groups) == 1


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model.backbone.requires_grad_(False)
    optimizer = built(model, pconfig={"bn_b": NO_DECAY})
    assert set(settings(model, optimizer)) == {"head.weight", "head.bias"}


def test_nothing_to_train_is_an_error() -> None:
    model = net().requires_grad_(False)
    with pytest.raises(UserError, match=facts("9", "parameters", "frozen")):
        built(model)


def test_shared_parameters_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = built(model, pconfig={"linear_b": NO_DECAY})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


def test_special_group_first_match_wins() -> None:
    model = net()
    special = [{"key": "backbone.2", "lr": 0.01}, {"key": "backbone", "lr": 0.02, "weight_decay": 0.5}]
    optimizer = built(model, special_param_group=special)
    scales, decays = settings(model, optimizer, "lr_scale"), settings(model, optimizer)
    assert scales["backbone.2.weight"] == pytest.approx(0.1)
    assert scales["backbone.0.weight"] == pytest.approx(0.2)
    assert scales["head.weight"] == 1.0
    assert decays["backbone.2.weight"] == 0.05
    assert decays["backbone.0.weight"] == 0.5


def test_special_weight_decay_wins_over_rules_and_the_rest_stays() -> None:
    model = net()
    optimizer = built(
        model,
        pconfig={"linear_b": NO_DECAY, "nodecay": ["backbone"]},
        special_param_group=[{"key": "backbone.0", "weight_decay": 0.3}, {"key": "head", "lr": 1.0}],
    )
    decays, rates = settings(model, optimizer), settings(model, optimizer, "lr")
    assert (decays["backbone.0.weight"], decays["backbone.1.weight"]) == (0.3, 0.0)
    assert (decays["head.weight"], decays["head.bias"]) == (0.05, 0.0)
    assert rates["head.bias"] == pytest.approx(1.0)


def test_special_group_that_matches_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match=facts("special_param_group", "'hed'", "'head'")):
        built(net(), special_param_group=[{"key": "hed", "lr": 0.01}])


def test_nodecay_that_matches_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match=facts("pconfig.nodecay", "contains", "'relative_positoin'")):
        built(net(), pconfig={"nodecay": ["head", "relative_positoin", "ndim_is1"]})


def test_rule_may_set_lr_and_any_option_of_the_optimizer() -> None:
    model = net()
    optimizer = built(model, momentum=0.9, pconfig={"bn_w": {"kwargs": {"lr": 0.2, "momentum": 0.5}}})
    assert settings(model, optimizer, "lr_scale")["backbone.1.weight"] == pytest.approx(2.0)
    assert settings(model, optimizer, "momentum")["backbone.1.weight"] == 0.5
    assert settings(model, optimizer, "momentum")["head.weight"] == 0.9


def test_lr_of_each_group_follows_the_schedule() -> None:
    model = net()
    optimizer = built(model, special_param_group=[{"key": "head", "lr": 1.0}])
    set_lr(optimizer, 0.03)
    assert settings(model, optimizer, "lr")["head.weight"] == pytest.approx(0.3)


class Wrapped(nn.Module):
    """A timm trunk under `backbone` and a head beside it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=0)
        self.head = nn.Linear(self.backbone.num_features, 7)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_layer_decay_is_timms(name: str) -> None:
    whole = timm.create_model(name, num_classes=7)
    classifier = whole.pretrained_cfg["classifier"]
    names = {id(p): n for n, p in whole.named_parameters()}
    names = {
        key: f"backbone.{name}" if not name.startswith(f"{classifier}.") else f"head.{name.rpartition('.')[2]}"
        for key, name in names.items()
    }
    groups = param_groups_layer_decay(whole, layer_decay=0.6)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    model = Wrapped(name)
    optimizer = built(model, pconfig={"layer_decay": {"type": "vit", "value": 0.6}})
    assert settings(model, optimizer, "lr_scale") == pytest.approx(expected)


def test_layer_decay_in_module_order_where_the_network_offers_none() -> None:
    trunk = nn.Sequential(*[nn.Linear(2, 2) for _ in range(13)])  # 26 tensors: layers of 12, 12 and 2, as in timm
    model = nn.Sequential()
    model.add_module("backbone", trunk)
    model.add_module("head", nn.Linear(2, 2))
    scales = settings(model, built(model, pconfig={"layer_decay": {"value": 0.5}}), "lr_scale")
    assert scales["head.weight"] == 1.0
    assert scales["backbone.12.bias"] == 0.5
    assert scales["backbone.11.weight"] == scales["backbone.6.weight"] == 0.25
    assert scales["backbone.5.bias"] == scales["backbone.0.weight"] == 0.125


def test_layer_decay_base_lr_replaces_the_rate_it_decays_from() -> None:
    model = net()
    optimizer = built(model, pconfig={"layer_decay": {"type": "vit", "value": 0.5, "base_lr": 0.2}})
    assert settings(model, optimizer, "lr")["head.weight"] == pytest.approx(0.2)
    assert settings(model, optimizer, "lr")["backbone.0.weight"] == pytest.approx(0.1)


def test_layers_are_named_in_the_table() -> None:
    model = net()
    optimizer = built(model, pconfig={"layer_decay": {"value": 0.5}, "bn_w": NO_DECAY, "bn_b": NO_DECAY})
    assert [row.rule for row in group_table(optimizer)] == ["layer 0: default", "layer 0: bn_w, bn_b", "layer 1: default"]


def test_discriminative_rates_by_depth() -> None:
    """ULMFiT: three equal groups from the head, each 2.6 times slower than the one above it."""
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
    optimizer = built(model, pconfig={"discriminative": {"blocks": 3, "factor": 2.6}})
    scales = settings(model, optimizer, "lr_scale")
    assert [scales[f"{i}.weight"] for i in range(6)] == pytest.approx([2.6**-2] * 2 + [2.6**-1] * 2 + [1.0] * 2)
    assert scales["0.bias"] == scales["0.weight"]
    assert [row.rule for row in group_table(optimizer)] == ["block 2: default", "block 1: default", "block 0: default"]


def test_table_lists_groups_and_frozen() -> None:
    model = net()
    model.backbone[0].requires_grad_(False)
    optimizer = built(model, pconfig={"bn_w": NO_DECAY}, special_param_group=[{"key": "head", "lr": 0.2}])
    rows = [tuple(row) for row in group_table(optimizer, model)]
    assert rows == [
        ("bn_w", 1, 4, pytest.approx(0.1), 0.0),
        ("default", 5, 4 + 4 * 6 * 9 + 6 + 6 * 2, pytest.approx(0.1), 0.05),
        ("special 'head'", 2, 970, pytest.approx(0.2), 0.05),
        ("frozen", 1, 108, 0.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("kwargs", "key", "words"),
    [
        ({"pconfig": {"bnw": NO_DECAY}}, "pconfig.bnw", ["'bn_w'"]),
        ({"pconfig": {"bn_w": {"weight_decya": 0.0}}}, "pconfig.bn_w.kwargs.weight_decya", ["SGD", "'weight_decay'"]),
        ({"pconfig": {"bn_w": {"weight_decay": "none"}}}, "pconfig.bn_w.weight_decay", ["'none'", "a number"]),
        ({"pconfig": {"bn_w": {"lr": -1}}}, "pconfig.bn_w.kwargs.lr", ["-1", "at least 0"]),
        ({"pconfig": {"bn_w": 0.0}}, "pconfig.bn_w", ["0.0", "block"]),
        ({"pconfig": {"linear": NO_DECAY, "linear_b": NO_DECAY}}, "pconfig", ["linear and linear_b"]),
        ({"pconfig": {"nodecay": 3}}, "pconfig.nodecay", ["3", "text"]),
        ({"pconfig": {"nodecay": {"values": []}}}, "pconfig.nodecay", ["values"]),
        ({"pconfig": {"layer_decay": {"type": "vit"}}}, "pconfig.layer_decay.value", ["missing"]),
        ({"pconfig": {"layer_decay": {"value": 1.5}}}, "pconfig.layer_decay.value", ["1.5", "at most 1"]),
        ({"pconfig": {"layer_decay": {"value": 0.5, "baselr": 1}}}, "pconfig.layer_decay.baselr", ["'base_lr'"]),
        ({"pconfig": {"discriminative": {"blocks": 0}}}, "pconfig.discriminative.blocks", ["0", "at least 1"]),
        ({"pconfig": {"discriminative": {}, "layer_decay": {"value": 0.5}}}, "pconfig", ["layer_decay", "discriminative"]),
        ({"special_param_group": [{"lr": 0.1}]}, "special_param_group.0.key", ["missing"]),
        ({"special_param_group": [{"key": "head", "lrs": 0.1}]}, "special_param_group.0.lrs", ["'lr'"]),
        ({"lr": 0.0, "special_param_group": [{"key": "head", "lr": 0.1}]}, "", ["relative to lr", "0"]),
    ],
)
def test_bad_rules_are_named(kwargs: dict[str, Any], key: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        built(net(), **kwargs)
    (problem,) = error.value.problems
    assert problem.key.startswith(key) if "nodecay" in key else problem.key == key
    assert all(word in problem.sentence for word in words), problem


def test_an_optimizer_that_requires_a_learning_rate() -> None:
    with pytest.raises(UserError, match=facts("missing", "csgdp")) as error:
        lr_of("csgdp", {})
    assert error.value.problems[0].key == "lr"
    assert lr_of("csgdp", {"lr": 0.1}) == 0.1
