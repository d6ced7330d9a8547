"""ResNets by depth, base channels, and the blocks where channels double or the stride is 2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.harness.nets import meta_device
from up.errors import UserError
from up.models.complexity import complexity
from up.models.net import Net
from up.models.resnets import resnet18, resnet_custom

USUAL_18 = [0, 0, 1, 0, 1, 0, 1, 0]


def test_the_usual_places_give_the_published_network() -> None:
    image = torch.randn(2, 3, 64, 64)
    published = resnet18().eval()
    arranged = resnet_custom(depth=18, doublechannel=USUAL_18, downsample=USUAL_18).eval()
    arranged.load_state_dict(published.state_dict())
    with torch.inference_mode():
        assert torch.equal(arranged({"image": image})["features"][0], published({"image": image})["features"][0])


@pytest.mark.parametrize(
    ("kwargs", "planes", "strides"),
    [
        ({"depth": 18, "downsample": [1, 0, 0, 0, 0, 0, 0, 1]}, [64, 128, 256, 512], [8, 8, 8, 16]),
        ({"depth": 18, "doublechannel": [0, 0, 0, 0, 0, 0, 0, 1], "base_channel": 48}, [48, 48, 48, 96], [4, 8, 16, 32]),
        ({"depth": 50, "doublechannel": [0] * 15 + [1], "stem": "small"}, [256, 256, 256, 512], [1, 2, 4, 8]),
        ({"block": "basic", "layers": [1, 1, 1, 1], "doublechannel": [1, 1, 1, 1]}, [128, 256, 512, 1024], [4, 8, 16, 32]),
    ],
)
def test_channels_and_strides(kwargs: dict[str, Any], planes: list[int], strides: list[int]) -> None:
    backbone = resnet_custom(**kwargs, out_layers=[1, 2, 3, 4])
    features = backbone({"image": torch.randn(1, 3, 64, 64)})["features"]
    assert backbone.out_planes == [feature.shape[1] for feature in features] == planes
    assert backbone.out_strides == [64 // feature.shape[2] for feature in features] == strides


def test_cost_of_fewer_strides_and_doubles() -> None:
    def cost(**kwargs: list[int]) -> tuple[int, int]:
        with meta_device():
            total = complexity(Net([("backbone", resnet_custom(depth=50, **kwargs))])).total
        return total.parameters, total.macs

    usual = cost()
    fewer_strides = cost(downsample=[int(at in (7, 13)) for at in range(16)])
    narrow = cost(doublechannel=[0] * 16)
    assert usual[0] == 25_557_032 - 2_049_000  # the published network without its classifier
    assert fewer_strides[0] == usual[0]
    assert 3 < fewer_strides[1] / usual[1] < 4  # all but the stem and the first stage see four times the pixels
    assert narrow[0] < usual[0] / 10


def test_the_rate_of_drop_path_stays_that_of_each_block() -> None:
    kwargs: dict[str, Any] = {"depth": 18, "drop_path_rate": 0.2}
    rates = [
        [getattr(block.drop_path, "drop_prob", 0.0) for number in range(1, 5) for block in network.get_submodule(f"layer{number}")]
        for network in (resnet_custom(**kwargs), resnet_custom(**kwargs, doublechannel=[1] + [0] * 7))
    ]
    assert rates[0] == rates[1] == pytest.approx([0.2 * at / 7 for at in range(8)])


@pytest.mark.parametrize(
    ("kwargs", "key", "fact"),
    [
        ({"depth": 18, "block": "basic"}, "depth", "block"),
        ({"layers": [1, 1, 1, 1]}, "block", "depth"),
        ({"block": "basic"}, "layers", "depth"),
        ({"depth": 18, "base_channel": 32, "width": 64}, "base_channel", "width"),
        ({"depth": 18, "doublechannel": [0, 1]}, "doublechannel", "8 numbers"),
        ({"depth": 34, "downsample": [0] * 8}, "downsample", "16 numbers"),
    ],
)
def test_mistakes_name_the_key(kwargs: dict[str, Any], key: str, fact: str) -> None:
    with pytest.raises(UserError) as caught:
        resnet_custom(**kwargs)
    assert caught.value.problems[0].key == key
    assert fact in str(caught.value)
