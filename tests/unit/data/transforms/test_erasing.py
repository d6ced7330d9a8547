"""Random erasing against timm's: the same areas, aspects, counts and noise, statistically."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from timm.data.random_erasing import RandomErasing as TimmRandomErasing
from torch import Tensor

from tests.harness.facts import facts
from up.data.transforms.erasing import RandomErasing
from up.errors import UserError
from up.seed import generator, seed_cpu

IMAGE = torch.full((3, 40, 56), 7.0)


def shares(erase: Any, number: int = 800) -> Tensor:
    """The erased share of each of ``number`` images."""
    return torch.stack([(erase(IMAGE.clone()) != 7).all(0).float().mean() for _ in range(number)])


@pytest.mark.parametrize("kwargs", [{}, {"probability": 0.25, "max_count": 3}, {"min_area": 0.2, "max_area": 0.9}])
def test_as_much_is_erased_as_timm_erases(kwargs: dict[str, Any]) -> None:
    seed_cpu(0)
    random.seed(0)
    ours = shares(RandomErasing(mode="const", **kwargs))
    theirs = shares(TimmRandomErasing(mode="const", device="cpu", **kwargs))
    assert abs((ours > 0).float().mean() - (theirs > 0).float().mean()) < 0.06
    assert abs(ours[ours > 0].mean() - theirs[theirs > 0].mean()) < 0.02
    assert abs(ours[ours > 0].std() - theirs[theirs > 0].std()) < 0.02


def test_boxes_keep_to_the_areas_and_aspects() -> None:
    erasing = RandomErasing(probability=1, min_area=0.1, max_area=0.2, min_aspect=0.5)
    boxes = [box for index in range(300) for box in erasing.boxes(224, 224, generator(index))]
    assert len(boxes) == 300
    areas = torch.tensor([box.height * box.width / 224**2 for box in boxes])
    aspects = torch.tensor([box.height / box.width for box in boxes])
    assert 0.097 < areas.min() < 0.105
    assert 0.195 < areas.max() < 0.203
    assert 0.48 < aspects.min() < 0.53
    assert 1.9 < aspects.max() < 2.05
    assert abs(aspects.log().mean()) < 0.08  # log-uniform: as often tall as wide
    assert all(box.top + box.height <= 224 and box.left + box.width <= 224 for box in boxes)
    assert min(box.top for box in boxes) < 5
    assert max(box.top + box.height for box in boxes) > 219


def test_counts_share_the_area() -> None:
    erasing = RandomErasing(probability=1, min_count=2, max_count=4)
    counts = [len(erasing.boxes(224, 224, generator(index))) for index in range(300)]
    assert sorted(set(counts)) == [2, 3, 4]
    four = RandomErasing(probability=1, min_area=0.4, max_area=0.4, min_count=4)
    assert [round(box.height * box.width / 224**2, 2) for box in four.boxes(224, 224, generator(1))] == [0.1] * 4


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_modes(mode: Any) -> None:
    erasing = RandomErasing(probability=1, min_area=0.3, mode=mode)
    boxes = erasing.boxes(200, 200, generator(1))
    image = erasing.erase_(torch.full((3, 200, 200), 7.0), boxes, generator(2))
    top, left, height, width = boxes[0]
    inside = image[:, top : top + height, left : left + width]
    assert int((image != 7).sum()) == 3 * height * width
    if mode == "pixel":
        assert abs(inside.mean()) < 0.05
        assert abs(inside.std() - 1) < 0.05
    else:
        assert all(len(channel.unique()) == 1 for channel in inside)
        assert len(inside[:, 0, 0].unique()) == (3 if mode == "rand" else 1)
    if mode == "const":
        assert int(inside.abs().max()) == 0


def test_as_a_transform_it_follows_the_global_seed_and_leaves_its_input_alone() -> None:
    erasing = RandomErasing(probability=1)
    seed_cpu(4)
    first = erasing(IMAGE)
    seed_cpu(4)
    assert torch.equal(first, erasing(IMAGE))
    assert not torch.equal(first, IMAGE)
    assert IMAGE.eq(7).all()
    assert RandomErasing(probability=0)(IMAGE) is IMAGE


def test_levels_are_refused() -> None:
    with pytest.raises(UserError, match=facts("torch_randerase", "torch.uint8", "to_tensor")):
        RandomErasing()(torch.zeros(3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"probability": 2}, "probability: got 2"),
        ({"min_area": 0.5}, "min_area: got"),
        ({"max_area": 1.5}, "min_area: got"),
        ({"min_aspect": 0}, "min_aspect: got"),
        ({"min_aspect": 2, "max_aspect": 1}, "min_aspect: got"),
        ({"max_count": 0}, r"min_count: got \[1, 0\]"),
    ],
)
def test_bad_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandomErasing(**kwargs)
