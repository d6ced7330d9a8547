"""Depths, blocks and layers of parameters."""

from __future__ import annotations

import timm
from timm.optim import auto_group_layers
from torch import nn

from up.optim.groups import depth_blocks, layer_ids, module_depths


def stack(count: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(2, 2, bias=i % 2 == 0) for i in range(count)])


def test_weight_and_bias_share_a_depth() -> None:
    assert module_depths(stack(3)) == {"0.weight": 0, "0.bias": 0, "1.weight": 1, "2.weight": 2, "2.bias": 2}


def test_blocks_are_equal_and_counted_from_the_head() -> None:
    blocks = depth_blocks(stack(7), 3)
    assert [blocks[f"{i}.weight"] for i in range(7)] == [2, 2, 1, 1, 0, 0, 0]


def test_more_blocks_than_modules() -> None:
    blocks = depth_blocks(stack(2), 5)
    assert [blocks["0.weight"], blocks["1.weight"]] == [2, 0]


def test_layers_without_a_matcher_are_timms_twelve_tensors() -> None:
    model = nn.Sequential()
    model.add_module("trunk", stack(30))
    model.add_module("head", nn.Linear(2, 2))
    model.pretrained_cfg = {"classifier": "head"}
    assert layer_ids(model) == auto_group_layers(model)


def test_a_frozen_stem_still_counts() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    before = layer_ids(model)
    model.conv1.requires_grad_(False)
    assert layer_ids(model) == before
    assert min(before, key=before.__getitem__).startswith("conv1")


def test_one_module_is_one_layer() -> None:
    assert layer_ids(nn.Linear(2, 2)) == {"weight": 0, "bias": 0}
