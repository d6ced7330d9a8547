"""Mixing of batches against timm's Mixup with the same weight and box; keyed, for every kind of label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup
from torch import Tensor

from tests.harness.facts import facts
from up.data.records import Batch
from up.errors import UserError
from up.seed import generator
from up.tasks.cls.augment.mixing import (
    BATCH_FNS,
    BatchCutmix,
    BatchCutmixMixup,
    BatchMixup,
    Mix,
    MixPolicy,
    cut_box,
    dominant_labels,
    mix_images,
    numpy_generator,
    soft_targets,
)

CLASSES = 5
LABELS = torch.tensor([0, 3, 4, 1])


def batch_of(gt: Tensor = LABELS, size: tuple[int, int] = (12, 16)) -> Batch:
    images = torch.rand(len(gt), 3, *size, generator=torch.Generator().manual_seed(0))
    return Batch(image=images, gt=gt, filename=[str(i) for i in range(len(gt))])


def drawn(policy: MixPolicy, key: int, size: tuple[int, int] = (12, 16)) -> Mix:
    return policy.draw(numpy_generator(generator(key)), size)


@pytest.mark.parametrize("key", range(5))
def test_mixup_is_timms(key: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of()
    mix = drawn(MixPolicy(0.4, 0.0), key)
    theirs = timm_mixup.Mixup(mixup_alpha=0.4, label_smoothing=0, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (mix.lam, False))
    image, target = theirs(batch.image.clone(), batch.gt)
    made = BatchMixup(alpha=0.4, num_classes=CLASSES)(batch, generator(key))
    torch.testing.assert_close(made.image, image, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.gt, target, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", range(8))
def test_cutmix_is_timms(key: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of()
    rng = numpy_generator(generator(key))
    rng.beta(1, 1)
    centre = [int(rng.integers(12)), int(rng.integers(16))]
    mix = drawn(MixPolicy(0.0, 1.0), key)
    first = numpy_generator(generator(key))
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: centre.pop(0))
    theirs = timm_mixup.Mixup(mixup_alpha=0, cutmix_alpha=1, label_smoothing=0, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (float(first.beta(1, 1)), True))
    image, target = theirs(batch.image.clone(), batch.gt)
    made = BatchCutmix(num_classes=CLASSES)(batch, generator(key))
    assert torch.equal(made.image, image)
    torch.testing.assert_close(made.gt, target, rtol=0, atol=1e-6)
    assert mix.box is not None


def test_the_box_is_timms_for_every_weight() -> None:
    np.random.seed(0)
    for lam in np.linspace(0, 1, 23):
        state = np.random.get_state()
        expected = timm_mixup.rand_bbox((3, 13, 20), lam)
        np.random.set_state(state)
        centre = (np.random.randint(13), np.random.randint(20))
        assert cut_box((13, 20), lam, centre) == tuple(int(edge) for edge in expected)


def test_the_weight_is_that_of_the_pasted_pixels() -> None:
    zeros, ones = torch.zeros(1, 3, 12, 16), torch.ones(1, 3, 12, 16)
    for key in range(20):
        mix = drawn(MixPolicy(0.0, 1.0), key)
        assert mix_images(zeros, ones, mix).mean().item() == pytest.approx(1 - mix.lam, abs=1e-6)


@pytest.mark.parametrize("name", list(BATCH_FNS))
@pytest.mark.parametrize("size", [4, 3, 1])
def test_targets_sum_to_one_for_any_batch(name: str, size: int) -> None:
    batch = batch_of(LABELS[:size])
    before = batch.image.clone()
    made = BATCH_FNS.get(name)(num_classes=CLASSES)(batch, generator(7))
    assert made.gt.shape == (size, CLASSES)
    assert made.gt.dtype == torch.float32
    torch.testing.assert_close(made.gt.sum(1), torch.ones(size))
    assert made.dominant.dtype == torch.int64
    assert torch.equal(batch.image, before)
    assert batch.gt is not made.gt
    assert made.filename == batch.filename
    if size == 1:
        torch.testing.assert_close(made.image, batch.image)
        assert made.dominant.tolist() == [0]


def test_the_same_key_gives_the_same_batch_and_another_key_another() -> None:
    mix = BatchCutmixMixup(num_classes=CLASSES)
    first, again, other = (mix(batch_of(), generator(key)) for key in (1, 1, 2))
    torch.manual_seed(5)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.gt, again.gt)
    assert not torch.equal(first.gt, other.gt)


def test_dominant_is_the_label_of_the_larger_weight() -> None:
    seen = set()
    for key in range(12):
        made = BatchMixup(num_classes=CLASSES)(batch_of(), generator(key))
        own = drawn(MixPolicy(1.0, 0.0), key).lam >= 0.5
        seen.add(own)
        assert torch.equal(made.dominant, LABELS if own else LABELS.flip(0))
        assert torch.equal(made.dominant, made.gt.argmax(1))
    assert seen == {True, False}
    tie = dominant_labels(LABELS, LABELS.flip(0), torch.full((4, CLASSES), 0.2), 0.5)
    assert torch.equal(tie, LABELS)


def test_switch_probability_and_weights() -> None:
    policy = MixPolicy(0.2, 1.0, 0.3)
    mixes = [drawn(policy, key) for key in range(600)]
    cut = [mix for mix in mixes if mix.box is not None]
    assert 140 < len(cut) < 220
    lam = np.array([mix.lam for mix in mixes if mix.box is None])
    assert abs(lam.mean() - 0.5) < 0.05
    assert abs(lam.var() - 1 / (4 * (2 * 0.2 + 1))) < 0.02  # of Beta(a, a)
    assert all(drawn(MixPolicy(1.0, 0.0, 1.0), key).box is None for key in range(5))
    assert all(drawn(MixPolicy(1.0, 1.0, 1.0), key).box is not None for key in range(5))


def test_soft_and_multi_hot_labels_are_mixed_as_they_are() -> None:
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    lam = drawn(MixPolicy(1.0, 0.0), 3).lam
    made = BatchMixup(num_classes=3)(batch_of(soft), generator(3))
    torch.testing.assert_close(made.gt, lam * soft + (1 - lam) * soft.flip(0))
    assert torch.equal(made.dominant, made.gt.argmax(1))
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(BatchMixup(num_classes=3)(batch_of(several), generator(3)).gt[0], several[0] * lam)


def test_one_hot() -> None:
    assert soft_targets(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("gt", "message"),
    [
        (torch.tensor([0, 5]), r"num_classes: got 5 and a label 5, expected labels within 0\.\.4"),
        (torch.tensor([-1, 2]), "got 5 and a label -1"),
        (torch.tensor([[0, 1], [2, 3]]), "got 2 labels an image, expected one: mixing is for nets with a single head"),
        (torch.ones(2, 4), "num_classes: got 5, expected 4, the length of the soft labels"),
    ],
)
def test_labels_that_cannot_be_mixed(gt: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BatchMixup(num_classes=CLASSES)(batch_of(gt), generator(0))


def test_several_heads_cannot_be_mixed() -> None:
    for part in (BatchMixup, BatchCutmix, BatchCutmixMixup):
        with pytest.raises(UserError, match=facts("[4, 3]", "single head")) as caught:
            part(num_classes=[4, 3])  # as derived from data with two labels an image
        assert caught.value.problems[0].key == "num_classes"


def test_levels_are_refused() -> None:
    batch = Batch(image=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), gt=torch.tensor([0, 1]))
    with pytest.raises(UserError, match=facts("batch_fn", "images", "torch.uint8")):
        BatchMixup()(batch, generator(0))


@pytest.mark.parametrize(
    ("part", "kwargs"),
    [
        (BatchMixup, {"alpha": 0}),
        (BatchCutmix, {"alpha": -1.0}),
        (BatchCutmixMixup, {"mixup_alpha": 0, "cutmix_alpha": 0}),
        (BatchMixup, {"alpha": float("nan")}),
        (BatchMixup, {"alpha": float("inf")}),
    ],
)
def test_bad_alphas(part: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=facts("alpha", "mixup", "CutMix")):
        part(**kwargs)


def test_a_bad_switch_probability() -> None:
    with pytest.raises(UserError, match="switch_prob: got 1.5"):
        BatchCutmixMixup(switch_prob=1.5)


def test_an_alpha_of_zero_switches_one_kind_off() -> None:
    assert all(drawn(MixPolicy(0.0, 1.0, 0.0), key).box is not None for key in range(5))
