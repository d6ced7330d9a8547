from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.harness.facts import facts
from up.config.signature import signature_of
from up.errors import UserError
from up.tasks.cls.model.losses import LOSSES, BinaryCrossEntropy, ClassificationLoss, CrossEntropy, LabelSmoothing, SoftmaxEQL
from up.types import Record

# The inputs of the printed reference values.
X = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.1, 0.2, 0.3, -2.0]])
HARD = torch.tensor([0, 2])
SOFT = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])


def test_label_smoothing_has_the_printed_values() -> None:
    loss = LabelSmoothing(smooth_ratio=0.1, num_classes=4)
    assert loss(X, HARD).item() == pytest.approx(0.80397, abs=5e-6)
    assert loss(X, SOFT).item() == pytest.approx(1.07397, abs=5e-6)


def test_bce_has_the_printed_values() -> None:
    assert BinaryCrossEntropy(bias=True)(X, SOFT).item() == pytest.approx(1.80484, abs=1e-5)
    by_hand = (X.exp().log1p() - X * SOFT).mean().item()
    assert BinaryCrossEntropy()(X, SOFT).item() == pytest.approx(by_hand, rel=1e-6)
    assert BinaryCrossEntropy()(X, SOFT).item() == pytest.approx(nn.BCEWithLogitsLoss()(X, SOFT).item(), rel=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_bce_takes_hard_labels_as_one_hot(bias: bool) -> None:
    loss = BinaryCrossEntropy(bias=bias)
    assert loss(X, HARD).item() == loss(X, F.one_hot(HARD, 4).float()).item()


@pytest.mark.parametrize("name", ["ce", "stce"])
def test_cross_entropy_of_hard_and_soft_targets(name: str) -> None:
    loss = LOSSES.get(name)()
    assert loss(X, HARD).item() == pytest.approx(F.cross_entropy(X, HARD).item(), rel=1e-6)
    by_hand = -(SOFT * X.log_softmax(1)).sum(1).mean()
    assert loss(X, SOFT).item() == pytest.approx(by_hand.item(), rel=1e-6)


def derived(name: str) -> Record:
    """What the program derives for a loss: the batch has one image in two views, the logits are cosines."""
    known = {"num_classes": 4, "views": 2, "scale": 1.0}
    return {key: value for key, value in known.items() if key in signature_of(LOSSES.get(name)).parameters}


def test_every_loss_of_the_table_takes_hard_and_soft_targets_and_a_weight() -> None:
    margins = ["am_softmax", "arcface", "cosface"]
    smooth = ["jsd", "label_smooth_ce"]
    assert sorted(LOSSES) == sorted(
        [*margins, *smooth, "asl", "bce", "ce", "focal", "sigmoid_focal", "softmax_eql", "softmax_eqlv2", "stce"]
    )
    for name in LOSSES:
        supplied = derived(name)
        one, three = (LOSSES.get(name)(loss_weight=weight, **supplied) for weight in (1.0, 3.0))
        for target in (HARD, SOFT):
            assert three(X, target).item() == pytest.approx(3 * one(X, target).item(), rel=1e-6)


@pytest.mark.parametrize("make", [CrossEntropy, LabelSmoothing, BinaryCrossEntropy])
def test_losses_are_computed_in_float32_under_autocast(make: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = make()(X.bfloat16(), SOFT)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(make()(X.bfloat16().float(), SOFT).item(), rel=1e-6)


def test_float64_logits_stay_float64() -> None:
    assert CrossEntropy()(X.double(), HARD).dtype == torch.float64


def test_class_weights_agree_with_torch_for_hard_labels() -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    oracle = nn.CrossEntropyLoss(weight=torch.tensor(weights), label_smoothing=0.1)
    assert LabelSmoothing(class_weights=weights)(X, HARD).item() == pytest.approx(oracle(X, HARD).item(), rel=1e-6)


@pytest.mark.parametrize("make", [CrossEntropy, LabelSmoothing])
def test_class_weights_mean_the_same_for_a_label_and_for_its_one_hot_vector(make: Any) -> None:
    loss = make(class_weights=[1.0, 2.0, 3.0, 4.0])
    assert loss(X, F.one_hot(HARD, 4).float()).item() == pytest.approx(loss(X, HARD).item(), rel=1e-6)


def test_class_weights_of_bce_weigh_the_positives() -> None:
    oracle = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    loss = BinaryCrossEntropy(class_weights=[1.0, 2.0, 3.0, 4.0])
    assert loss(X, SOFT).item() == pytest.approx(oracle(X, SOFT).item(), rel=1e-6)


def test_balanced_weights_are_images_over_classes_times_images_of_the_class() -> None:
    loss = CrossEntropy(class_weights="balanced", class_counts=[10, 30, 0, 0])
    assert loss.class_weights is not None
    assert loss.class_weights.tolist() == pytest.approx([1.0, 40 / 120, 0.0, 0.0])
    assert "class_weights" not in loss.state_dict()


def test_balanced_weights_without_counts_say_what_is_missing() -> None:
    with pytest.raises(UserError, match=facts("class_weights", "balanced", "numbers")):
        CrossEntropy(class_weights="balanced")


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [math.nan, 1.0], [0.0, 0.0], []])
def test_class_weights_that_are_no_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=facts("class_weights", "finite", "number")):
        CrossEntropy(class_weights=weights)


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_a_loss_weight_below_0_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=facts("loss_weight", str(weight))):
        CrossEntropy(loss_weight=weight)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 2.0])
def test_a_target_threshold_that_makes_all_targets_alike_is_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=facts("target_threshold", str(threshold))):
        BinaryCrossEntropy(target_threshold=threshold)


def test_a_loss_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match=facts("num_classes", "0", "1")):
        SoftmaxEQL(num_classes=0)


def test_class_weights_of_the_wrong_length_name_both_numbers() -> None:
    with pytest.raises(UserError, match=facts("class_weights", "2", "4")):
        CrossEntropy(class_weights=[1.0, 1.0])(X, HARD)


def test_a_soft_target_of_another_width_names_both_numbers() -> None:
    with pytest.raises(UserError, match=facts("2", "3", "2", "4")):
        CrossEntropy()(X, SOFT[:, :3])


def test_target_threshold_makes_soft_targets_hard() -> None:
    loss = BinaryCrossEntropy(target_threshold=0.4)
    assert loss(X, SOFT).item() == BinaryCrossEntropy()(X, HARD).item()


def test_bce_sum_adds_the_classes_and_averages_the_images() -> None:
    total, mean = BinaryCrossEntropy(reduction="sum")(X, SOFT), BinaryCrossEntropy()(X, SOFT)
    assert total.item() == pytest.approx(4 * mean.item(), rel=1e-6)


def test_scores_follow_the_loss_that_trained_the_net() -> None:
    assert torch.allclose(CrossEntropy().scores(X), X.softmax(1))
    assert torch.allclose(BinaryCrossEntropy().scores(X), X.sigmoid())
    assert torch.allclose(BinaryCrossEntropy(bias=True).scores(X), (X - math.log(4)).sigmoid())
    assert CrossEntropy().scores(X.bfloat16()).dtype == torch.float32


def test_bias_moves_what_is_exported_and_nothing_else_does() -> None:
    assert torch.equal(BinaryCrossEntropy(bias=True).adjust(X), X - math.log(4))
    losses: list[ClassificationLoss] = [CrossEntropy(), BinaryCrossEntropy(), SoftmaxEQL(num_classes=4)]
    assert all(torch.equal(loss.adjust(X), X) for loss in losses)
    assert [loss.activation for loss in losses] == ["softmax", "sigmoid", "softmax"]


def test_a_loss_waits_for_no_device_and_shapes_can_be_checked_without_computing() -> None:
    for name in LOSSES:
        loss = LOSSES.get(name)(**derived(name)).to("meta")
        for target in (HARD, SOFT):
            value = loss(X.to("meta").requires_grad_(), target.to("meta"))
            assert (value.device.type, value.shape) == ("meta", ())


class Squared(ClassificationLoss):
    """A loss of somebody else's, which says nothing about single images."""

    def _loss(self, logits: Any, target: Any) -> Any:
        return (logits - (F.one_hot(target, 4) if target.ndim == 1 else target)).square().mean()


class WithoutClass(ClassificationLoss):
    """A loss that leaves the images of class 2 out, which are all of ``HARD`` but one."""

    def _loss(self, logits: Any, target: Any) -> Any:
        return F.cross_entropy(logits, target, ignore_index=2, reduction="mean") if target.ndim == 1 else logits.square().mean()

    def weight(self, target: Any) -> Any:
        return (target != 2).sum() if target.ndim == 1 else None


LOSSES_OF_IMAGES = [
    CrossEntropy(),
    CrossEntropy(class_weights=[1.0, 2.0, 0.5, 0.0], loss_weight=3.0),
    LabelSmoothing(smooth_ratio=0.2),
    LabelSmoothing(class_weights=[1.0, 2.0, 0.5, 4.0]),
    BinaryCrossEntropy(bias=True),
    BinaryCrossEntropy(reduction="sum"),
    BinaryCrossEntropy(target_threshold=0.5, class_weights=[1.0, 2.0, 0.5, 4.0]),
    SoftmaxEQL(num_classes=4),
    Squared(),
]


@pytest.mark.parametrize("target", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("loss", [*LOSSES_OF_IMAGES, WithoutClass()])
def test_shares_of_single_images_add_up_to_the_loss(loss: ClassificationLoss, target: torch.Tensor) -> None:
    loss.eval()
    if isinstance(loss, SoftmaxEQL):
        loss.collect_grad(torch.tensor([[0.5, -0.2, 0.1, -0.4]]))
    shares, weights = loss.of_each(X, target)
    assert shares.shape == weights.shape == (2,)
    assert (shares.sum() / weights.sum()).item() == pytest.approx(loss(X, target).item(), rel=1e-6)
    halves = [loss.of_each(X[i : i + 1], target[i : i + 1]) for i in (0, 1)]
    assert torch.allclose(torch.cat([half[0] for half in halves]), shares)


@pytest.mark.parametrize("target", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("loss", [*LOSSES_OF_IMAGES, WithoutClass()])
def test_a_loss_is_the_mean_of_its_halves_by_weight(loss: ClassificationLoss, target: torch.Tensor) -> None:
    """What training on several ranks and accumulation rely on."""
    loss.eval()
    halves = [(loss(X[i : i + 1], target[i : i + 1]), loss.weight(target[i : i + 1])) for i in (0, 1)]
    weights = [1.0 if weight is None else float(weight) for _, weight in halves]
    mean = sum(float(half) * weight for (half, _), weight in zip(halves, weights, strict=True) if weight) / sum(weights)
    assert mean == pytest.approx(loss(X, target).item(), rel=1e-6)
