"""Mixing of two samples in the worker, for every kind of image and label."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tests.harness.facts import facts
from up.data.records import Sample
from up.errors import UserError
from up.seed import seed_cpu
from up.tasks.cls.augment.mixing import BatchCutmixMixup, BatchMix, BatchMixup, Mix, mix_images, numpy_generator
from up.tasks.cls.augment.sample_mixing import CutmixMixup, Mixup, SampleMix

DARK, LIGHT = (torch.full((3, 10, 12), level, dtype=torch.uint8) for level in (20, 220))


def drawn(part: SampleMix, seed: int) -> Mix:
    seed_cpu(seed)
    return part.policy.draw(numpy_generator(torch.default_generator), (10, 12))


def mixed(part: SampleMix, seed: int, first: Any = DARK, second: Any = LIGHT, labels: Any = (1, 3)) -> Sample:
    seed_cpu(seed)
    return part(Sample(image=first, gt=labels[0], filename="a"), lambda: Sample(image=second, gt=labels[1], filename="b"))


@pytest.mark.parametrize("seed", range(6))
def test_mixup_of_levels(seed: int) -> None:
    part = Mixup(num_classes=4, extra_input=True)
    lam = drawn(part, seed).lam
    sample = mixed(part, seed)
    assert sample.image.dtype == torch.uint8
    assert sample.image.unique().tolist() == [round(20 * lam + 220 * (1 - lam))]
    torch.testing.assert_close(sample.gt, torch.tensor([0, lam, 0, 1 - lam]))
    assert sample.dominant == (1 if lam >= 0.5 else 3)
    assert sample.filename == "a"


@pytest.mark.parametrize("seed", range(8))
def test_every_kind_of_image_is_mixed_alike(seed: int) -> None:
    part = CutmixMixup(num_classes=4, extra_input=True)
    expected = mix_images(DARK.float(), LIGHT.float(), drawn(part, seed))
    assert torch.equal(mixed(part, seed).image, expected.round().to(torch.uint8))
    picture = mixed(part, seed, F.to_pil_image(DARK), F.to_pil_image(LIGHT)).image
    assert isinstance(picture, PILImage)
    assert torch.equal(F.pil_to_tensor(picture), expected.round().to(torch.uint8))
    assert torch.equal(mixed(part, seed, DARK, F.to_pil_image(LIGHT)).image, expected.round().to(torch.uint8))
    assert torch.equal(mixed(part, seed, DARK.float(), LIGHT.float()).image, expected)


def test_cutmix_weighs_by_pixels() -> None:
    part = CutmixMixup(switch_prob=1, num_classes=4, extra_input=True)
    for seed in range(10):
        sample = mixed(part, seed)
        share = (sample.image == 220).all(0).float().mean().item()
        assert sample.gt.tolist() == pytest.approx([0, 1 - share, 0, share], abs=1e-6)


def test_the_weight_does_not_depend_on_how_the_second_is_drawn() -> None:
    part = Mixup(num_classes=4, extra_input=True)
    first = mixed(part, 3).gt

    def draw_with_randomness() -> Sample:
        torch.rand(100)
        return Sample(image=LIGHT, gt=3)

    seed_cpu(3)
    assert torch.equal(first, part(Sample(image=DARK, gt=1), draw_with_randomness).gt)


def test_another_size_is_resized_to_the_first() -> None:
    part = Mixup(num_classes=4, extra_input=True)
    assert torch.equal(mixed(part, 2, second=LIGHT[:, :4, :5]).image, mixed(part, 2).image)


def test_soft_labels() -> None:
    part = Mixup(num_classes=4, extra_input=True)
    lam = drawn(part, 1).lam
    soft = torch.tensor([0.5, 0.5, 0.0, 0.0])
    sample = mixed(part, 1, labels=(soft, 3))
    torch.testing.assert_close(sample.gt, torch.tensor([lam / 2, lam / 2, 0, 1 - lam]))
    assert sample.dominant == int(sample.gt.argmax())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((1, 4), r"num_classes: got 4 and a label 4, expected labels within 0\.\.3"),
        (([0, 1], [1, 2]), "got 2 labels an image, expected one"),
        ((torch.ones(3) / 3, 1), "num_classes: got 4, expected 3"),
    ],
)
def test_labels_that_cannot_be_mixed(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixed(Mixup(num_classes=4, extra_input=True), 0, labels=labels)


def test_a_raw_second_after_to_tensor_is_refused() -> None:
    with pytest.raises(UserError, match=facts("torch.float32", "torch.uint8", "transform")):
        mixed(Mixup(num_classes=4, extra_input=True), 0, first=DARK.float())


def test_without_extra_input_they_stand_for_the_batch() -> None:
    mixup = Mixup(alpha=0.3, num_classes=7)
    assert not mixup.takes_second
    made = mixup.as_batch_fn()
    assert isinstance(made, BatchMix)
    assert (made.policy, made.num_classes) == (BatchMixup(alpha=0.3).policy, 7)
    both = CutmixMixup(mixup_alpha=0.1, cutmix_alpha=2, switch_prob=0.7, num_classes=9).as_batch_fn()
    assert isinstance(both, BatchMix)
    assert both.policy == BatchCutmixMixup(mixup_alpha=0.1, cutmix_alpha=2, switch_prob=0.7).policy
    assert both.num_classes == 9


@pytest.mark.parametrize("part", [Mixup, CutmixMixup])
def test_the_flags_that_the_data_set_reads(part: Any) -> None:
    plain, raw, passed = part(), part(extra_input=True), part(extra_input=True, transform=True)
    assert (plain.takes_second, raw.takes_second, passed.takes_second) == (False, True, True)
    assert (raw.transform_second, passed.transform_second) == (False, True)


def test_numbers_are_new_tensors() -> None:
    before: Tensor = DARK.clone()
    mixed(CutmixMixup(switch_prob=1, num_classes=4, extra_input=True), 0)
    assert torch.equal(DARK, before)
