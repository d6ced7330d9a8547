"""Losses for imbalanced data, sets of labels, views and margins: printed values, the same from the libraries that have them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel, JsdCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from up.errors import UserError
from up.tasks.cls.model.imbalance import ArcFace, Asymmetric, CosFace, JensenShannon, SigmoidFocal, SoftmaxFocal
from up.tasks.cls.model.losses import LOSSES, BinaryCrossEntropy, ClassificationLoss, CrossEntropy

X = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.1, 0.2, 0.3, -2.0]])
HARD = torch.tensor([0, 2])
SETS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
WEIGHTS = [1.0, 2.0, 3.0, 4.0]
COSINES = torch.tensor([[0.8, 0.1, -0.3, 0.0], [0.2, -0.5, -0.9, 0.4]])  # the angle of the second label is beyond π - margin
SCALE = 30.0


def test_focal_has_the_printed_values() -> None:
    of_label = X.softmax(1)[range(2), HARD]
    each = -((1 - of_label) ** 2) * of_label.log()
    assert SoftmaxFocal()(X, HARD).item() == pytest.approx(0.230906, abs=1e-6)
    assert SoftmaxFocal()(X, HARD).item() == pytest.approx(each.mean().item(), rel=1e-6)
    assert SoftmaxFocal(gamma=0)(X, HARD).item() == pytest.approx(F.cross_entropy(X, HARD).item(), rel=1e-6)
    weighted = SoftmaxFocal(class_weights=WEIGHTS)(X, HARD).item()
    assert weighted == pytest.approx(0.331973, abs=1e-6)
    assert weighted == pytest.approx((each @ torch.tensor([1.0, 3.0])).item() / 4, rel=1e-6)


def test_sigmoid_focal_has_the_printed_values() -> None:
    assert SigmoidFocal()(X, SETS).item() == pytest.approx(0.118779, abs=1e-6)
    assert SigmoidFocal()(X, SETS).item() == pytest.approx(sigmoid_focal_loss(X, SETS, reduction="mean").item(), rel=1e-6)
    ours = SigmoidFocal(alpha=None, gamma=1.0, reduction="sum")(X, SETS).item()
    assert ours == pytest.approx(1.504388, abs=1e-6)
    assert ours == pytest.approx(sigmoid_focal_loss(X, SETS, alpha=-1, gamma=1, reduction="sum").item() / 2, rel=1e-6)
    assert SigmoidFocal(alpha=None, gamma=0)(X, SETS).item() == pytest.approx(BinaryCrossEntropy()(X, SETS).item(), rel=1e-6)


def test_asl_has_the_printed_values() -> None:
    assert Asymmetric()(X, SETS).item() == pytest.approx(0.701459, abs=1e-6)
    assert Asymmetric()(X, SETS).item() == pytest.approx(AsymmetricLossMultiLabel(reduction="sum")(X, SETS).item() / 2, rel=1e-5)
    other: Any = {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0}
    assert Asymmetric(**other)(X, SETS).item() == pytest.approx(1.496748, abs=1e-6)
    assert Asymmetric(**other)(X, SETS).item() == pytest.approx(AsymmetricLossMultiLabel(**other)(X, SETS).item(), rel=1e-5)
    plain = Asymmetric(gamma_neg=0.0, gamma_pos=0.0, clip=0.0, reduction="mean", class_weights=WEIGHTS)
    assert plain(X, SETS).item() == pytest.approx(BinaryCrossEntropy(class_weights=WEIGHTS)(X, SETS).item(), rel=1e-6)


def views_of(logits: Tensor) -> Tensor:
    """Three views of each image, in a row."""
    return torch.stack([logits, logits + torch.tensor([0.5, -0.5, 0.0, 0.0]), logits * 0.5], 1).flatten(0, 1)


def test_jsd_has_the_printed_values() -> None:
    rows, labels = views_of(X), HARD.repeat_interleave(3)
    ours = JensenShannon(views=3)(rows, labels).item()
    assert ours == pytest.approx(1.242623, abs=1e-6)
    split = rows.unflatten(0, (2, 3)).transpose(0, 1).flatten(0, 1)  # timm has one part of the batch for each view
    assert ours == pytest.approx(JsdCrossEntropy(num_splits=3, alpha=12, smoothing=0.1)(split, HARD.repeat(3)).item(), rel=1e-6)
    alike = X.repeat_interleave(3, 0)
    clean = F.cross_entropy(X, HARD, label_smoothing=0.1).item()
    assert JensenShannon(views=3)(alike, labels).item() == pytest.approx(clean, abs=1e-5)
    assert JensenShannon(views=3).eval()(X, HARD).item() == pytest.approx(clean, rel=1e-6)  # one view an image


@pytest.mark.parametrize(("loss", "printed"), [(CosFace(scale=SCALE), 24.751253), (ArcFace(scale=SCALE), 23.096972)])
def test_margins_have_the_printed_values(loss: ClassificationLoss, printed: float) -> None:
    moved = COSINES.clone()
    for row, label in enumerate(HARD.tolist()):
        angle = math.acos(COSINES[row, label])
        arc = math.cos(angle + 0.5) if angle + 0.5 < math.pi else COSINES[row, label] - 0.5 * math.sin(0.5)
        moved[row, label] = arc if isinstance(loss, ArcFace) else COSINES[row, label] - 0.35
    found = loss(SCALE * COSINES, HARD).item()
    assert found == pytest.approx(printed, abs=1e-5)
    assert found == pytest.approx(F.cross_entropy(SCALE * moved, HARD).item(), rel=1e-5)
    assert torch.equal(loss.scores(SCALE * COSINES), (SCALE * COSINES).softmax(1))  # no margin
    plain = type(loss)(scale=SCALE, margin=0.0, class_weights=WEIGHTS)  # type: ignore[call-arg]
    expected = CrossEntropy(class_weights=WEIGHTS)(SCALE * COSINES, HARD).item()
    assert plain(SCALE * COSINES, HARD).item() == pytest.approx(expected, rel=1e-5)


def losses() -> list[ClassificationLoss]:
    own = [SoftmaxFocal(), SigmoidFocal(), Asymmetric(), JensenShannon(views=3).eval(), CosFace(scale=4.0), ArcFace(scale=4.0)]
    return [*own, SoftmaxFocal(class_weights=WEIGHTS), CosFace(scale=4.0, class_weights=WEIGHTS), Asymmetric(class_weights=WEIGHTS)]


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_labels_equal_their_one_hot_vectors_and_shares_add_up(loss: ClassificationLoss) -> None:
    """The validation loss of any images is the loss of these images as one batch."""
    value = loss(X, HARD).item()
    assert loss(X, F.one_hot(HARD, 4).float()).item() == pytest.approx(value, rel=1e-6)
    shares, weights = loss.of_each(X, HARD)
    assert (shares.sum() / weights.sum()).item() == pytest.approx(value, rel=1e-6)
    given = loss.weight(HARD)
    assert weights.sum().item() == pytest.approx(2.0 if given is None else float(given))


@pytest.mark.parametrize("loss", [loss for loss in losses() if loss.class_weights is None], ids=lambda loss: type(loss).__name__)
def test_gradients_are_finite_at_saturated_logits(loss: ClassificationLoss) -> None:
    scale = getattr(loss, "scale", 50.0)  # a cosine of 1, and of -1
    logits = (scale * torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, -1.0, -1.0, -1.0]])).requires_grad_()
    value = loss(logits, torch.tensor([0, 1]))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_gradient_of_every_loss_is_that_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 4, (2,), generator=draw).repeat_interleave(3)
    for loss in [
        SoftmaxFocal(gamma=1.5),
        SigmoidFocal(),
        Asymmetric(),
        JensenShannon(views=3),
        CosFace(scale=8.0),
        ArcFace(scale=8.0),
    ]:
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, labels), logits.clone().requires_grad_())


@pytest.mark.parametrize(
    ("name", "kwargs", "found"),
    [
        ("focal", {"gamma": -1.0}, ["gamma", "-1"]),
        ("sigmoid_focal", {"alpha": 1.5}, ["alpha", "1.5"]),
        ("asl", {"clip": -0.1}, ["clip", "-0.1"]),
        ("jsd", {}, ["views", "transformer"]),
        ("jsd", {"views": 1}, ["views", "1", "2"]),
        ("cosface", {}, ["norm_linear", "temperature"]),
        ("arcface", {"scale": 30.0, "margin": 2.0}, ["margin", "2.0"]),
        ("focal", {"class_weights": [1.0, -1.0]}, ["-1.0"]),
    ],
)
def test_wrong_settings_are_named(name: str, kwargs: dict[str, Any], found: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        LOSSES.get(name)(**kwargs)
    assert all(part in str(raised.value) for part in found)


def test_part_of_the_views_of_an_image_is_an_error() -> None:
    with pytest.raises(UserError, match="4 rows.* 3 views"):
        JensenShannon(views=3)(views_of(X)[:4], HARD.repeat_interleave(3)[:4])


def test_balanced_weights_are_the_same_for_every_loss() -> None:
    for name in ("focal", "sigmoid_focal", "asl", "jsd", "cosface", "arcface"):
        given: Any = {"jsd": {"views": 2}, "cosface": {"scale": 1.0}, "arcface": {"scale": 1.0}}.get(name, {})
        loss = LOSSES.get(name)(class_weights="balanced", class_counts=[6, 3, 1], **given)
        assert loss.class_weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
