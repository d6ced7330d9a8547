"""A step of distillation: the parts of its loss, where gradients go, what a checkpoint has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.harness.facts import facts
from tests.harness.nets import batch_of, loss_of, net_of
from up.data.records import Batch
from up.distill.losses import GKDLoss, KDLoss, L2Loss, channel_weights
from up.distill.runner import KDRunner
from up.distill.teachers import Teacher
from up.distill.terms import DistillationTerm, DistillationTerms, HookedStudent, Pair
from up.engine.step import Runner, StepOutput
from up.errors import UserError
from up.models.feature_hooks import FeatureHooks

LOGITS = Pair("head.classifier", "head.classifier")


def untouched(batch: Batch) -> Batch:
    return batch


def mixed(batch: Batch, generator: torch.Generator) -> Batch:
    share = torch.rand((), generator=generator)
    return Batch(batch, image=torch.lerp(batch.image, batch.image.flip(0), share))


def runner_of(*terms: DistillationTerm, task_loss: bool = True, mix: Any = None, teacher_seed: int = 1) -> KDRunner:
    student = net_of(4)
    terms = terms or (DistillationTerm("mimic_job0_loss", "mimic_job0", "teacher", KDLoss(T=2.0), [LOGITS], weight=0.5),)
    all_terms = DistillationTerms(terms, task_loss)
    teacher = Teacher("teacher", net_of(6, seed=teacher_seed), all_terms.layers_of("teacher"), example=batch_of(2))
    shapes = {"head.classifier": (2, 5), "backbone": (2, 4, 4, 4)}
    torch.manual_seed(5)
    adapters = all_terms.build_adapters(shapes, {"teacher": teacher.shapes})
    hooked = HookedStudent(student, adapters, FeatureHooks(student, all_terms.student_layers))
    return KDRunner(hooked, loss_of=loss_of, stage=untouched, mix=mix, seed=7, terms=all_terms, teachers=[teacher])


def step_of(runner: Runner, step: int = 3) -> StepOutput:
    return runner.training_step(runner.prepare(batch_of(), step, 0), step)


def plain_of(mix: Any = None) -> Runner:
    return Runner(net_of(4), loss_of=loss_of, stage=untouched, mix=mix, seed=7)


def test_loss_is_the_task_and_the_mimic_loss_and_both_are_shown() -> None:
    runner = runner_of()
    shown = step_of(runner).shown()
    logits = step_of(plain_of()).outputs["logits"]
    expected = 0.5 * KDLoss(T=2.0)(logits, net_of(6, seed=1).eval()(batch_of())["logits"], None)
    assert shown["mimic_job0_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert shown["task_loss"].item() == step_of(plain_of()).loss.item()
    assert shown["loss"].item() == pytest.approx(shown["task_loss"].item() + shown["mimic_job0_loss"].item(), rel=1e-6)
    assert "accuracy_top1" in shown


def test_without_the_task_loss_it_is_shown_but_does_not_count() -> None:
    shown = step_of(runner_of(task_loss=False)).shown()
    assert shown["loss"].item() == shown["mimic_job0_loss"].item()
    assert shown["task_loss"].item() == step_of(plain_of()).loss.item()


def gradients(runner: Runner) -> dict[str, Tensor]:
    step_of(runner).loss.backward()
    return {name: parameter.grad for name, parameter in runner.model.named_parameters()}


def test_gradient_reaches_the_student_only() -> None:
    runner = runner_of()
    found = gradients(runner)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found.values())
    (teacher,) = runner.teachers
    assert isinstance(teacher, Teacher)
    assert all(parameter.grad is None for parameter in teacher.net.parameters())


@pytest.mark.parametrize("mix", [None, mixed])
def test_a_mimic_loss_of_no_weight_changes_no_bit(mix: Any) -> None:
    """Dropout, BatchNorm, mixing and the images are those of a run without a teacher."""
    nothing = DistillationTerm("none", "mimic_job0", "teacher", KDLoss(), [LOGITS], weight=0.0)
    runner, plain = runner_of(nothing, mix=mix), plain_of(mix)
    ours, theirs = gradients(runner), gradients(plain)
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[name], tensor), name


def test_the_teacher_sees_the_mixed_batch() -> None:
    runner = runner_of(mix=mixed)
    batch = runner.prepare(batch_of(), 3, 0)
    assert not torch.equal(batch.image, batch_of().image)
    (teacher,) = runner.teachers
    assert torch.equal(teacher(batch)["head.classifier"], net_of(6, seed=1).eval()(batch)["logits"])


def test_adapters_train_and_are_in_the_state_and_the_teacher_is_not() -> None:
    through = DistillationTerm("features", "mimic_job0", "teacher", L2Loss(), [Pair("backbone", "backbone", "conv1x1")])
    runner = runner_of(through)
    step_of(runner).loss.backward()
    (weight,) = runner.hooked.adapters.parameters()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    assert list(runner.state_dict()["adapters"]) == ["mimic_job0_teacher_0.weight"]
    assert list(runner.model.state_dict()) == list(net_of(4).state_dict())
    assert not any("teacher" in name for name, _ in runner.net.named_modules() if not name.startswith("adapters"))
    other = runner_of(through)
    with torch.no_grad():
        next(other.hooked.adapters.parameters()).zero_()
    other.load_state_dict(runner.state_dict())
    assert torch.equal(next(other.hooked.adapters.parameters()), weight)


def test_goes_on_with_the_same_teachers_only() -> None:
    state = runner_of().state_dict()
    assert list(state["teachers"]) == ["teacher"]
    runner_of().load_state_dict(state)
    with pytest.raises(UserError, match=facts("teacher", "sha256", f"{state['teachers']['teacher']}")):
        runner_of(teacher_seed=2).load_state_dict(state)


def test_warm_up_goes_by_the_step() -> None:
    slow = DistillationTerm("slow", "mimic_job0", "teacher", KDLoss(), [LOGITS], weight=3.0, warm_up=10)
    whole = DistillationTerm("slow", "mimic_job0", "teacher", KDLoss(), [LOGITS], weight=1.5)
    assert step_of(runner_of(slow), 0).shown()["slow"].item() == 0
    assert step_of(runner_of(slow), 5).shown()["slow"].item() == step_of(runner_of(whole), 5).shown()["slow"].item() > 0


def guided_runner(layer: str) -> KDRunner:
    loss = GKDLoss()
    student = net_of(4, norm=False)
    all_terms = DistillationTerms([DistillationTerm("guided", "mimic_job0", "teacher", loss, [Pair(layer, layer)])])
    teacher = Teacher("teacher", net_of(4, seed=1, norm=False), all_terms.layers_of("teacher"), example=batch_of(2))
    hooked = HookedStudent(student, {}, FeatureHooks(student, all_terms.student_layers))
    return KDRunner(hooked, loss_of=loss_of, stage=lambda batch: batch, mix=None, seed=7, terms=all_terms, teachers=[teacher])


def test_a_guided_term_takes_the_gradient_of_each_images_own_loss() -> None:
    """And leaves none in the parameters before the backward pass, through which both losses then go."""
    made = guided_runner("backbone")
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


def test_a_guided_image_weighs_the_same_in_any_batch() -> None:
    made = guided_runner("backbone")
    made.model.head.dropout.p = 0.0
    whole = batch_of(4)
    halves = [type(whole)({name: value[part] for name, value in whole.items()}) for part in (slice(0, 2), slice(2, 4))]
    values = [made.training_step(batch, 0).scalars["guided"].item() for batch in (whole, *halves)]
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-5)


def test_a_guided_layer_that_is_not_on_the_way_to_the_loss() -> None:
    terms = guided_runner("backbone").terms
    aside = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(UserError, match=facts("task", "depend", "'backbone'")):
        terms({"backbone": aside}, {"teacher": {"backbone": aside.detach()}}, {}, 0, (torch.ones(1, requires_grad=True) * 2).sum())
