"""gkd_loss: weights from the gradient of the task loss, against numpy and a gradient by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.harness.nets import batch_of, loss_of, net_of
from up.distill.guided import GKDLoss, channel_weights
from up.distill.mimic import DistillationTerm, HookedStudent, Mimic, Pair
from up.distill.runner import KDRunner
from up.distill.taps import Taps
from up.distill.teachers import Teacher
from up.errors import UserError

STUDENT = torch.tensor([[2.0, 0, -1, 0.5], [0.1, 0.2, 0.3, -2]])
TEACHER = torch.tensor([[1.0, -3, 2, 0], [0, 1, -1, -1]])
LABELS = torch.tensor([0, 2])


def test_reference_value_at_the_logits() -> None:
    """The gradient of cross-entropy is softmax - one_hot: weights [2, .6630, .2439, 1.0931] and [.8978, .9922, 2, .1099]."""
    x = STUDENT.numpy().astype(np.float64)
    gradient = np.exp(x) / np.exp(x).sum(1, keepdims=True) - np.eye(4)[LABELS.numpy()]
    weights = np.abs(gradient) / np.abs(gradient).mean(1, keepdims=True)
    expected = (weights * (x - TEACHER.numpy()) ** 2).mean()
    assert expected == pytest.approx(1.8211676, abs=1e-7)
    loss = GKDLoss()
    assert loss.guided(STUDENT, TEACHER, torch.tensor(gradient).float()).item() == pytest.approx(expected, rel=1e-5)
    assert loss.distance(STUDENT, TEACHER, None).item() == pytest.approx(F.mse_loss(STUDENT, TEACHER).item())
    summed = GKDLoss(reduction="sum", loss_weight=0.5).guided(STUDENT, TEACHER, torch.tensor(gradient).float())
    assert summed.item() == pytest.approx(0.5 * 4 * expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 4), (3, 7, 5)])
def test_weights_are_one_on_average_and_of_channels(shape: tuple[int, ...]) -> None:
    weights = channel_weights(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    assert weights.numel() == 15
    assert weights.reshape(3, 5).mean(1).tolist() == pytest.approx([1, 1, 1])
    assert channel_weights(torch.zeros(shape)).unique().tolist() == [1]


def runner(layer: str) -> KDRunner:
    loss = GKDLoss()
    student, mimic = net_of(4, norm=False), Mimic([DistillationTerm("guided", "mimic_job0", "teacher", loss, [Pair(layer, layer)])])
    teacher = Teacher("teacher", net_of(4, seed=1, norm=False), mimic.layers_of("teacher"), example=batch_of(2))
    hooked = HookedStudent(student, {}, Taps(student, mimic.layers_of_student()))
    return KDRunner(hooked, loss_of=loss_of, stage=lambda batch: batch, mix=None, seed=7, mimic=mimic, teachers=[teacher])


def test_the_runner_takes_the_gradient_of_each_images_own_loss() -> None:
    """And leaves none in the parameters before the backward pass, through which both losses then go."""
    made = runner("backbone")
    made.model.head.dropout.p = 0.0
    batch = batch_of()
    output = made.training_step(batch, 0)
    assert all(parameter.grad is None for parameter in made.model.parameters())
    feature = made.model.backbone(batch)["features"][0].detach().requires_grad_()
    logits = made.model.head({"features": [feature]})["logits"]
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch["gt"], reduction="sum"), feature)
    theirs = net_of(4, seed=1, norm=False).eval().backbone(batch)["features"][0].detach()
    expected = (channel_weights(gradient) * (feature - theirs).square()).mean()
    assert output.scalars["guided"].item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in made.model.parameters())


def test_an_image_weighs_the_same_in_any_batch() -> None:
    made = runner("backbone")
    made.model.head.dropout.p = 0.0
    whole = batch_of(4)
    halves = [type(whole)({name: value[part] for name, value in whole.items()}) for part in (slice(0, 2), slice(2, 4))]
    values = [made.training_step(batch, 0).scalars["guided"].item() for batch in (whole, *halves)]
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-5)


def test_a_layer_that_is_not_on_the_way_to_the_loss() -> None:
    mimic = runner("backbone").mimic
    aside = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(UserError, match="the task loss does not depend on 'backbone'"):
        mimic({"backbone": aside}, {"teacher": {"backbone": aside.detach()}}, {}, 0, (torch.ones(1, requires_grad=True) * 2).sum())
