"""A teacher is a frozen net whose activations are constants, in the student's order of classes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.harness.nets import batch_of, net_of
from up.data.records import Batch
from up.distill.teachers import Teacher, match_classes
from up.models.net import Net


def test_gives_what_a_bare_forward_gives() -> None:
    batch = batch_of()
    expected = net_of(6).eval()(batch)
    teacher = Teacher("teacher", net_of(6), ["head.classifier", "backbone"], example=batch_of(2))
    said = teacher(batch)
    assert torch.equal(said["head.classifier"], expected["logits"])
    assert torch.equal(said["backbone"], expected["features"][0])
    assert teacher.shapes == {"head.classifier": (2, 5), "backbone": (2, 6, 4, 4)}


def test_is_a_constant_that_the_students_graph_can_hold() -> None:
    teacher = Teacher("teacher", net_of(6), ["head.classifier"], example=batch_of(2))
    said = teacher(batch_of())["head.classifier"]
    assert (said.requires_grad, said.is_inference()) == (False, False)
    weight = torch.ones(4, 5, requires_grad=True)
    (weight * said).sum().backward()  # saves what the teacher said
    assert torch.equal(weight.grad, said)
    assert not any(parameter.requires_grad for parameter in teacher.net.parameters())


def test_same_numbers_under_autocast_as_a_bare_forward() -> None:
    batch = batch_of()
    teacher = Teacher("teacher", net_of(6), ["head.classifier"], example=batch_of(2))
    with torch.autocast("cpu", torch.bfloat16):
        said = teacher(batch)["head.classifier"]
        with torch.no_grad():
            expected = net_of(6).eval()(batch)["logits"]
    assert said.dtype == torch.bfloat16
    assert torch.equal(said, expected)


def test_convolutions_of_a_teacher_that_are_wrong_in_bfloat16_compute_in_float32() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 16, stride=16)

        def forward(self, record: dict[str, Any]) -> dict[str, Any]:
            return {"logits": self.conv(record["image"]).flatten(1)}

    batch = Batch(image=torch.rand(3, 4, 64, 64))
    teacher = Teacher("teacher", Net([("patches", Patches())]), ["patches.conv"], example=batch)
    expected = teacher.net(batch)["logits"]
    teacher.to(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        said = teacher(batch)["patches.conv"]
    assert torch.allclose(said.float().flatten(1), expected, atol=0.02)


def test_same_numbers_in_the_memory_format_of_the_run() -> None:
    batch = batch_of()
    plain = Teacher("teacher", net_of(6), ["head.classifier"], example=batch_of(2))(batch)["head.classifier"]
    teacher = Teacher("teacher", net_of(6), ["head.classifier"], example=batch_of(2), columns=[4, 3, 2, 1, 0])
    teacher.to(torch.device("cpu"), channels_last=True)
    assert teacher.net.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    said = teacher(Batch(batch, image=batch.image.contiguous(memory_format=torch.channels_last)))["head.classifier"]
    assert torch.allclose(said.flip(1), plain, atol=1e-6)


def test_draws_no_random_numbers_and_leaves_the_batch_alone() -> None:
    batch = batch_of()
    image, state = batch.image.clone(), torch.get_rng_state()
    keys = set(batch)
    Teacher("teacher", net_of(6), ["head.classifier"], example=batch_of(2))(batch)
    state_after_building = torch.get_rng_state()
    teacher = Teacher("teacher", net_of(6), ["head.classifier"], example=batch_of(2))
    state = torch.get_rng_state()
    teacher(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert state_after_building.equal(state)
    assert torch.equal(batch.image, image)
    assert set(batch) == keys


class SpoilsImage(nn.Module):
    def forward(self, record: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        return {"features": [record["image"].mul_(2)]}


def test_a_teacher_that_writes_into_its_input_gets_a_copy() -> None:
    teacher = Teacher("teacher", Net([("backbone", SpoilsImage())]), ["backbone"], example=batch_of(2))
    batch = batch_of()
    image = batch.image.clone()
    assert torch.equal(teacher(batch)["backbone"], 2 * image)
    assert torch.equal(batch.image, image)


def test_statistics_of_the_batch_or_its_own() -> None:
    batch = batch_of()
    own = net_of(6)
    own.backbone.norm.running_mean.fill_(0.5)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    by_batch, same = (
        Teacher("teacher", net, ["backbone"], example=batch_of(2), batch_statistics=True) for net in (own, deepcopy(own))
    )
    expected = net_of(6).train()
    assert torch.allclose(by_batch(batch)["backbone"], expected(batch)["features"][0], atol=1e-6)
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert by_batch.digest() == same.digest()


def test_modules_after_the_last_hook_do_not_run() -> None:
    teacher = Teacher("teacher", net_of(6), ["backbone.act"], example=batch_of(2))
    ran: list[str] = []
    for name in ("backbone", "head", "post_process"):
        teacher.net[name].register_forward_hook(lambda *_, name=name: ran.append(name))
    teacher(batch_of())
    assert ran == ["backbone"]
    assert teacher.outputs(batch_of())["logits"].shape == (4, 5)
    assert ran == ["backbone", "backbone", "head", "post_process"]


OURS = ["cat", "dog", "emu"]


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(OURS, None), (None, None), (["emu", "cat", "dog"], [1, 2, 0]), (["ant", "dog", "cat", "bee", "emu"], [2, 1, 4])],
)
def test_classes_are_matched_by_name(theirs: list[str] | None, expected: list[int] | None) -> None:
    found = match_classes("teacher", OURS, theirs)
    assert (found.columns, found.problem) == (expected, "")
    assert ("by number" in found.line) == (theirs is None)
    assert match_classes("teacher", None, theirs).columns is None


def test_a_teacher_without_a_class_of_the_students_is_refused() -> None:
    found = match_classes("teacher1", OURS, ["cat", "bee"])
    assert found.columns is None
    assert all(part in found.problem for part in ("teacher1", "2 classes", "dog, emu", "cat, bee"))
    assert match_classes("teacher", OURS, [["cat", "dog"], ["emu"]]).problem


def test_columns_are_applied_to_scores_of_classes_alone() -> None:
    batch = batch_of()
    plain = Teacher("teacher", net_of(6), ["head.classifier", "head.classifier:input"], example=batch_of(2))(batch)
    teacher = Teacher("teacher", net_of(6), ["head.classifier", "head.classifier:input"], example=batch_of(2), columns=[4, 0, 2])
    said = teacher(batch)
    assert torch.equal(said["head.classifier"], plain["head.classifier"][:, [4, 0, 2]])
    assert torch.equal(said["head.classifier:input"], plain["head.classifier:input"])
    assert teacher.shapes["head.classifier"] == (2, 3)
    assert torch.equal(teacher.outputs(batch)["logits"], plain["head.classifier"][:, [4, 0, 2]])


def test_digest_depends_on_weights_and_on_nothing_else() -> None:
    made = [
        Teacher("teacher", net_of(6, seed=seed), ["head.classifier"], example=batch_of(2), columns=columns).digest()
        for seed, columns in ((0, None), (0, None), (1, None), (0, [1, 0]))
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3
