"""Distillation terms: weights, warm-up, layers, adapters, several teachers and jobs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.harness.facts import facts
from tests.harness.nets import batch_of, net_of
from up.distill.losses import DKD, AttentionTransfer, GKDLoss, KDLoss, L2Loss
from up.distill.terms import ACTIVATIONS, DistillationTerm, DistillationTerms, HookedStudent, Pair
from up.errors import UserError
from up.models.feature_hooks import FeatureHooks


def term(
    *pairs: Pair, loss: Any = None, teacher: str = "teacher", name: str = "mimic_job0_loss", **kwargs: Any
) -> DistillationTerm:
    return DistillationTerm(name, "mimic_job0", teacher, loss or L2Loss(feat_norm=False), pairs or (Pair("a", "b"),), **kwargs)


def seen(**tensors: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), value, requires_grad=name != "teacher") for name, value in tensors.items()}


def test_factor_is_weight_by_layers_times_warm_up() -> None:
    two = term(Pair("a", "b"), Pair("c", "d"), weight=3.0, warm_up=4)
    assert [two.factor(step) for step in (0, 1, 2, 4, 9)] == [0.0, 0.375, 0.75, 1.5, 1.5]
    assert term(weight=3.0).factor(0) == 3.0  # no warm-up: whole at once


def test_layers_of_a_job_are_averaged() -> None:
    terms = DistillationTerms([term(Pair("a", "b"), Pair("c", "d"), weight=2.0)])
    losses = terms(seen(a=1.0, c=3.0), {"teacher": seen(b=0.0, d=0.0)}, {}, 0)
    assert losses["mimic_job0_loss"].item() == 2 * (3 * 1 + 3 * 9) / 2  # sums of squares by batch: 3 and 27


def test_several_teachers_and_jobs_are_apart() -> None:
    terms = DistillationTerms(
        [
            term(Pair("a", "b"), teacher="teacher0", name="one"),
            term(Pair("a", "b"), teacher="teacher1", name="two", weight=0.5),
            term(Pair("c", "b"), teacher="teacher1", name="three"),
        ]
    )
    losses = terms(seen(a=1.0, c=2.0), {"teacher0": seen(b=0.0), "teacher1": seen(b=3.0)}, {}, 0)
    assert {name: value.item() for name, value in losses.items()} == {"one": 3.0, "two": 6.0, "three": 3.0}
    assert terms.student_layers == ["a", "c"]
    assert (terms.layers_of("teacher0"), terms.layers_of("teacher1")) == (["b"], ["b"])


def test_computed_in_float32_under_autocast() -> None:
    student = {"a": torch.tensor([[1.001, 2.0]], dtype=torch.bfloat16, requires_grad=True)}
    teacher = {"b": torch.tensor([[0.5, 0.25]])}
    terms = DistillationTerms([term(loss=KDLoss(T=4.0))])
    with torch.autocast("cpu", torch.bfloat16):
        loss = terms(student, {"teacher": teacher}, {}, 0)["mimic_job0_loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == KDLoss(T=4.0)(student["a"].float(), teacher["b"], None).item()


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"gt": torch.tensor([2, 0])}, [2, 0]),
        ({"gt": torch.tensor([[0.3, 0.7], [0.6, 0.4]])}, [1, 0]),
        ({"gt": torch.tensor([[0.5, 0.5], [0.6, 0.4]]), "dominant": torch.tensor([1, 0])}, [1, 0]),
    ],
)
def test_label_of_a_mixed_image_is_the_heavier(batch: dict[str, Any], expected: list[int]) -> None:
    labels = DistillationTerms([term(loss=DKD())]).require_labels(batch)
    assert labels is not None
    assert labels.tolist() == expected


@pytest.mark.parametrize(
    ("batch", "says"), [({}, "needs one label per image"), ({"gt": torch.zeros(2, 3).long()}, "needs one label per image")]
)
def test_labels_that_cannot_serve(batch: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DistillationTerms([term(loss=DKD())])(seen(a=1.0), {"teacher": seen(b=1.0)}, batch, 0)


def test_layers_without_gradient_are_refused() -> None:
    with pytest.raises(UserError, match=facts("mimic.mimic_job0.student.mimic_name", "gradient", "'a'")):
        DistillationTerms([term()])({"a": torch.ones(2, 3)}, {"teacher": seen(b=1.0)}, {}, 0)


@pytest.mark.parametrize(
    ("loss", "adapter", "student", "teacher", "says"),
    [
        (KDLoss(), None, (2, 10), (2, 10), None),
        (L2Loss(), None, (2, 8, 4, 4), (2, 8, 4, 4), None),
        (L2Loss(), "conv1x1", (2, 8, 4, 4), (2, 16, 4, 4), None),
        (L2Loss(), "linear", (2, 8), (2, 16), None),
        (L2Loss(), "linear", (2, 7, 8), (2, 7, 16), None),
        (KDLoss(), None, (2, 10), (2, 1000), ["kd_loss", "(B, 10)", "(B, 1000)"]),
        (L2Loss(), None, (2, 8, 4, 4), (2, 16, 4, 4), ["l2_loss", "(B, 8, 4, 4)", "(B, 16, 4, 4)", "adapter: conv1x1"]),
        (L2Loss(), None, (2, 8), (2, 16), ["l2_loss", "adapter: linear"]),
        (L2Loss(), "conv1x1", (2, 8, 4, 4), (2, 16, 2, 2), ["conv1x1", "height and width", "Name layers that fit."]),
        (L2Loss(), None, (2, 8, 4, 4), (2, 9), ["l2_loss", "Name layers that fit."]),
        (GKDLoss(), None, (2, 8), (2, 9), ["gkd_loss", "Name layers that fit."]),
        (AttentionTransfer(), None, (2, 8), (2, 9), ["attention_transfer", "Name layers that fit."]),
        (GKDLoss(), "linear", (2, 8), (2, 9), ["gkd_loss", "Leave the adapter out"]),
    ],
)
def test_shapes(loss: Any, adapter: Any, student: tuple[int, ...], teacher: tuple[int, ...], says: list[str] | None) -> None:
    found = list(term(Pair("a", "b", adapter), loss=loss).shape_problems({"a": student}, {"b": teacher}))
    assert [problem.key for problem in found] == ([] if says is None else ["mimic.teacher.mimic_name.0"])
    assert all(part in str(problem) for problem in found for part in says or ())


def test_hooked_student_reads_the_student_through_adapters() -> None:
    student, batch = net_of(4), batch_of()
    only = term(Pair("head.classifier", "x"), Pair("backbone", "y", "conv1x1"), Pair("head.classifier:input", "z", "linear"))
    terms = DistillationTerms([only])
    hooks = FeatureHooks(student, terms.student_layers)
    shapes = {"head.classifier": (2, 5), "backbone": (2, 4, 4, 4), "head.classifier:input": (2, 4)}
    adapters = terms.build_adapters(shapes, {"teacher": {"x": (2, 5), "y": (2, 9, 4, 4), "z": (2, 6)}})
    hooked = HookedStudent(student, adapters, hooks).eval()
    record = hooked(batch)
    conv, linear = hooked.adapters["mimic_job0_teacher_1"], hooked.adapters["mimic_job0_teacher_2"]
    assert (tuple(conv.weight.shape), tuple(linear.weight.shape)) == ((9, 4, 1, 1), (6, 4))
    assert torch.equal(record["scores"], student(batch)["scores"])
    assert record[ACTIVATIONS].keys() == {
        "head.classifier",
        "backbone",
        "head.classifier:input",
        "mimic_job0_teacher_1",
        "mimic_job0_teacher_2",
    }
    assert torch.equal(record[ACTIVATIONS][only.key(1)], conv(record["features"][0]))
    assert torch.equal(record[ACTIVATIONS][only.key(2)], linear(record["features"][0].mean((2, 3))))
    assert [name for name, _ in student.named_parameters()] == [name for name, _ in net_of(4).named_parameters()]
    assert isinstance(hooked.student, nn.Module)
