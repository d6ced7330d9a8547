"""A step of distillation: the parts of its loss, where gradients go, what a checkpoint has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness.nets import batch_of, loss_of, net_of
from up.data.records import Batch
from up.distill.losses import KDLoss, L2Loss
from up.distill.mimic import DistillationTerm, HookedStudent, Mimic, Pair
from up.distill.runner import KDRunner
from up.distill.taps import Taps
from up.distill.teachers import Teacher
from up.engine.step import Runner, StepOutput
from up.errors import UserError

LOGITS = Pair("head.classifier", "head.classifier")


def untouched(batch: Batch) -> Batch:
    return batch


def mixed(batch: Batch, generator: torch.Generator) -> Batch:
    share = torch.rand((), generator=generator)
    return Batch(batch, image=torch.lerp(batch.image, batch.image.flip(0), share))


def runner_of(*terms: DistillationTerm, task_loss: bool = True, mix: Any = None, teacher_seed: int = 1) -> KDRunner:
    student = net_of(4)
    terms = terms or (DistillationTerm("mimic_job0_loss", "mimic_job0", "teacher", KDLoss(T=2.0), [LOGITS], weight=0.5),)
    mimic = Mimic(terms, task_loss)
    teacher = Teacher("teacher", net_of(6, seed=teacher_seed), mimic.layers_of("teacher"), example=batch_of(2))
    shapes = {"head.classifier": (2, 5), "backbone": (2, 4, 4, 4)}
    torch.manual_seed(5)
    adapters = mimic.build_adapters(shapes, {"teacher": teacher.shapes})
    hooked = HookedStudent(student, adapters, Taps(student, mimic.layers_of_student()))
    return KDRunner(hooked, loss_of=loss_of, stage=untouched, mix=mix, seed=7, mimic=mimic, teachers=[teacher])


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
    with pytest.raises(UserError, match=f"teacher has other weights now .sha256 {state['teachers']['teacher']} then, "):
        runner_of(teacher_seed=2).load_state_dict(state)


def test_warm_up_goes_by_the_step() -> None:
    slow = DistillationTerm("slow", "mimic_job0", "teacher", KDLoss(), [LOGITS], weight=3.0, warm_up=10)
    whole = DistillationTerm("slow", "mimic_job0", "teacher", KDLoss(), [LOGITS], weight=1.5)
    assert step_of(runner_of(slow), 0).shown()["slow"].item() == 0
    assert step_of(runner_of(slow), 5).shown()["slow"].item() == step_of(runner_of(whole), 5).shown()["slow"].item() > 0
