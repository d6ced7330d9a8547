"""The policies are timm's: same seeds, same image; and the levels are those of the recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tests.harness.facts import facts
from up.data.transforms.policies import AutoAugment, IncreasingRandAugment, RandAugment
from up.errors import UserError
from up.seed import seed_cpu

MEAN = (124, 116, 104)
LIKE_TIMM = [
    (IncreasingRandAugment(n=2, m=7, magnitude_std=0.5), rand_augment_transform("rand-m7-n2-mstd0.5-inc1", {"img_mean": MEAN})),
    (IncreasingRandAugment(n=2, m=6), rand_augment_transform("rand-m6-n2-inc1", {"img_mean": MEAN})),
    (RandAugment(n=3, m=9, magnitude_std=0.5), rand_augment_transform("rand-m9-n3-mstd0.5", {"img_mean": MEAN})),
    (AutoAugment(size=40), auto_augment_transform("original", {"translate_const": 18, "img_mean": MEAN})),
]


def picture() -> Tensor:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    return (torch.stack([rows, columns, 1 - rows * columns]) * 255).to(torch.uint8)


@pytest.mark.parametrize("ours", [ours for ours, _ in LIKE_TIMM], ids=lambda part: type(part).__name__)
def test_grey_images_are_changed_as_their_colours_would_be(ours: Any) -> None:
    """Up to rounding, and what is moved into the image is the luma of MEAN."""
    grey, changed = picture()[:1], 0
    for seed in range(40):
        seed_cpu(seed)
        got = ours(grey)
        assert (got.shape, got.dtype) == (grey.shape, torch.uint8)
        seed_cpu(seed)
        expected = ours(grey.expand(3, -1, -1).contiguous())
        assert (got.float() - F.rgb_to_grayscale(expected).float()).abs().median() <= 1
        changed += not torch.equal(got, grey)
    assert changed > 20


@pytest.mark.parametrize(("ours", "theirs"), LIKE_TIMM, ids=lambda part: type(part).__name__)
def test_same_seeds_give_timms_image(ours: Any, theirs: Any) -> None:
    image = F.to_pil_image(picture())
    changed = 0
    for seed in range(60):
        seed_cpu(seed)
        got = ours(image)
        seed_cpu(seed)
        expected = theirs(image)
        assert got.tobytes() == expected.tobytes()
        changed += got.tobytes() != image.tobytes()
    assert changed > 20


def levels(part: Any, magnitude: float) -> dict[str, float]:
    """The absolute argument of each operation at a magnitude."""
    operations = part._policy.ops
    assert all(operation.prob == 0.5 for operation in operations)
    assert all(operation.kwargs["fillcolor"] == MEAN for operation in operations)
    given = ((op.name, op.level_fn) for op in operations)
    return {name: abs(level(magnitude, {})[0]) if level else 0.0 for name, level in given}


def test_levels_of_the_increasing_variant_at_seven() -> None:
    seed_cpu(0)
    got = levels(IncreasingRandAugment(n=2, m=7), 7)
    assert len(got) == 15
    assert got["Rotate"] == pytest.approx(21)
    assert got["PosterizeIncreasing"] == 2
    assert got["SolarizeIncreasing"] == 77
    assert got["SolarizeAdd"] == 77
    assert got["ShearX"] == got["ShearY"] == pytest.approx(0.21)
    assert got["TranslateXRel"] == got["TranslateYRel"] == pytest.approx(0.315)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        assert abs(got[f"{name}Increasing"] - 1) == pytest.approx(0.63)


def test_levels_of_the_original_variant() -> None:
    got = levels(RandAugment(n=2, m=7), 7)
    assert len(got) == 15
    assert (got["Posterize"], got["Solarize"], got["SolarizeAdd"]) == (2, 179, 77)
    assert got["Brightness"] == pytest.approx(0.1 + 0.7 * 1.8)
    assert levels(RandAugment(n=2, m=0), 0)["Color"] == pytest.approx(0.1)
    assert levels(RandAugment(n=2, m=10), 10)["Solarize"] == 256


def test_posterize_leaves_a_bit_at_full_magnitude() -> None:
    assert levels(IncreasingRandAugment(n=2, m=10), 10)["PosterizeIncreasing"] == 1


def test_tensors_come_out_as_the_same_tensors() -> None:
    part = IncreasingRandAugment(n=2, m=7, magnitude_std=0.5)
    for seed in range(10):
        seed_cpu(seed)
        expected = F.pil_to_tensor(part(F.to_pil_image(picture())))
        seed_cpu(seed)
        assert torch.equal(part(picture()), expected)


@pytest.mark.parametrize("kwargs", [{"n": 0, "m": 7}, {"n": 2, "m": -1}, {"n": 2, "m": 7, "magnitude_std": -0.5}])
def test_bad_settings(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="(n|m|magnitude_std): got (0|-1|-0.5), expected at least"):
        RandAugment(**kwargs)
    with pytest.raises(UserError, match="(n|m|magnitude_std): got (0|-1|-0.5), expected at least"):
        IncreasingRandAugment(**kwargs)


def test_a_magnitude_above_ten_is_clipped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=facts("torch_random_augmentation.m", "30", "10")):
        RandAugment(n=2, m=30)
