"""The score of a teacher before it teaches."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from up.data.records import Batch
from up.distill.preflight import Score, score
from up.distill.teachers import Teacher
from up.errors import NumericalError
from up.models.net import Net


class Says(nn.Module):
    """Answers each image with the numbers that are written in its first pixels."""

    def __init__(self, classes: int, heads: int = 1) -> None:
        super().__init__()
        self.classes, self.heads = classes, heads

    def forward(self, record: Mapping[str, Any]) -> dict[str, Tensor | list[Tensor]]:
        said = record["image"][:, 0, 0, : self.classes]
        return {"logits": said if self.heads == 1 else [said] * self.heads}


def batch_of(rows: list[list[float]], gt: Tensor | None) -> Batch:
    image = torch.zeros(len(rows), 3, 2, 4)
    image[:, 0, 0, : len(rows[0])] = torch.tensor(rows)
    batch = Batch(image=image, filename=[f"{index}.png" for index in range(len(rows))])
    return Batch(batch, gt=gt) if gt is not None else batch


def scored(*batches: Batch, classes: int = 3, heads: int = 1) -> Score | None:
    net = Net([("head", Says(classes, heads))])
    teacher = Teacher("teacher", net, ["head"], example=batch_of([[1.0] * classes] * 2, None))
    return score(teacher, batches, lambda batch: batch, nullcontext())


FIRST, SECOND = [3.0, 1.0, 0.0], [-1.0, 2.0, 0.0]


def test_counts_over_batches() -> None:
    found = scored(batch_of([FIRST, SECOND], torch.tensor([0, 0])), batch_of([FIRST], torch.tensor([0])))
    assert found == Score(correct=2.0, images=3, chance=pytest.approx(1 / 3))  # type: ignore[arg-type]
    assert found.top1 == pytest.approx(66.667, abs=0.001)


def test_heads_are_averaged_and_sets_contain() -> None:
    found = scored(batch_of([FIRST, SECOND], torch.tensor([[0, 1], [1, 1]])), heads=2)
    assert found is not None
    assert found.correct == 1.5
    found = scored(batch_of([FIRST, SECOND], torch.tensor([[1.0, 0, 1], [1, 0, 1]])))
    assert found is not None
    assert found.correct == 1


def test_without_labels_there_is_no_score() -> None:
    assert scored(batch_of([FIRST], None)) is None


@pytest.mark.parametrize(
    ("gt", "heads"),
    [
        (torch.tensor([[0, 2], [1, 2]]), 1),  # two heads, and a teacher of one
        (torch.tensor([0, 1]), 2),
        (torch.tensor([[0, 1, 1], [1, 1, 0]]), 2),
        (torch.tensor([[0.0, 1], [1, 1]]), 1),  # sets of two classes, and a teacher of three
        (torch.tensor([[0.0, 1, 0], [1, 1, 0]]), 3),
    ],
)
def test_labels_of_other_heads_give_no_score(gt: Tensor, heads: int) -> None:
    assert scored(batch_of([FIRST, SECOND], gt), heads=heads) is None


def test_nan_ends_it() -> None:
    with pytest.raises(NumericalError, match="teacher: gives numbers that are not finite, for one of 0.png, 1.png"):
        scored(batch_of([FIRST, [torch.nan, 0, 0]], torch.tensor([0, 0])))


@pytest.mark.parametrize(
    ("correct", "images", "is_chance"),
    [(0, 512, True), (51, 512, True), (64, 512, True), (66, 512, False), (2, 13, True), (4, 13, False)],
)  # of 10 classes: 51.2 of 512 by guessing, 64.8 with two standard deviations more
def test_chance_is_what_guessing_may_reach(correct: int, images: int, is_chance: bool) -> None:
    assert Score(correct, images, 0.1).is_chance == is_chance


@pytest.mark.parametrize(("images", "chance"), [(4, 0.5), (1, 0.5), (3, 1.0)])
def test_too_few_images_to_tell(images: int, chance: float) -> None:
    assert not Score(images, images, chance).is_chance
    assert not Score(0, images, chance).is_chance


def test_probabilities_are_noticed() -> None:
    found = scored(batch_of([[0.2, 0.8, 0.0], [0.1, 0.3, 0.6]], torch.tensor([1, 2])))
    assert found is not None
    assert found.looks_like_probabilities
    other = scored(batch_of([FIRST], torch.tensor([0])))
    assert other is not None
    assert not found.plus(other).looks_like_probabilities
