"""Top-1 of a teacher, and what guessing would reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from up.tasks.cls.evaluate.teacher_top1 import TeacherTop1, Top1

FIRST, SECOND = [3.0, 1.0, 0.0], [-1.0, 2.0, 0.0]


def evaluated(*batches: tuple[list[list[float]], Tensor | None], heads: int = 1) -> TeacherTop1:
    evaluator = TeacherTop1()
    for rows, gt in batches:
        logits = torch.tensor(rows)
        evaluator.update({"logits": logits if heads == 1 else [logits] * heads}, {} if gt is None else {"gt": gt})
    return evaluator


def test_counts_over_batches_and_ranks() -> None:
    one = evaluated(([FIRST, SECOND], torch.tensor([0, 0])))
    one.merge([one.state(), evaluated(([FIRST], torch.tensor([0]))).state(), TeacherTop1().state()])
    assert one.total == Top1(correct=2.0, images=3, chance=pytest.approx(1 / 3), are_probabilities=False)  # type: ignore[arg-type]
    assert one.compute()["top1"] == pytest.approx(66.667, abs=0.001)
    score = one.score()
    assert score is not None
    assert (score.text.startswith("top-1 66.67 % of 3 "), score.guessing) == (True, "33.33 %")  # 3 images tell little


def test_heads_are_averaged_and_sets_contain() -> None:
    assert evaluated(([FIRST, SECOND], torch.tensor([[0, 1], [1, 1]])), heads=2).total.correct == 1.5
    assert evaluated(([FIRST, SECOND], torch.tensor([[1.0, 0, 1], [1, 0, 1]]))).total.correct == 1


def test_guessing_finds_one_of_the_labels_of_a_set_more_often() -> None:
    sets = torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    one, other = evaluated(([FIRST, SECOND], sets)), evaluated(([FIRST], torch.tensor([[0.0, 0, 1]])))
    one.merge([one.state(), other.state(), TeacherTop1().state()])
    assert one.total.chance == pytest.approx(5 / 9)
    score = evaluated(([FIRST] * 3 + [SECOND] * 3, torch.tensor([[1.0, 1, 0], [1, 0, 1], [0, 1, 1]] * 2))).score()
    assert score is not None
    assert (score.text.startswith("top-1 66.67 %"), score.guessing) == (True, "")  # of 6 images, guessing may find all
    many = evaluated(([FIRST, SECOND, FIRST] * 40, torch.tensor([[1.0, 1, 0], [1, 0, 1], [1, 1, 0]] * 40))).score()
    assert many is not None
    assert (many.text.startswith("top-1 66.67 %"), many.guessing) == (True, "66.67 %")


@pytest.mark.parametrize(
    ("gt", "heads"),
    [
        (None, 1),
        (torch.tensor([[0, 2], [1, 2]]), 1),  # two heads, and a teacher of one
        (torch.tensor([0, 1]), 2),
        (torch.tensor([[0, 1, 1], [1, 1, 0]]), 2),
        (torch.tensor([[0.0, 1], [1, 1]]), 1),  # sets of two classes, and a teacher of three
        (torch.tensor([[0.0, 1, 0], [1, 1, 0]]), 3),
    ],
)
def test_labels_that_do_not_fit_give_no_score(gt: Tensor | None, heads: int) -> None:
    assert evaluated(([FIRST, SECOND], gt), heads=heads).score() is None


@pytest.mark.parametrize(
    ("correct", "images", "chance", "is_chance"),
    [
        *((0, 512, 0.1, True), (51, 512, 0.1, True), (64, 512, 0.1, True), (66, 512, 0.1, False)),
        *((2, 13, 0.1, True), (4, 13, 0.1, False)),
        *((4, 4, 0.5, False), (0, 4, 0.5, False), (1, 1, 0.5, False), (3, 3, 1.0, False)),  # too few to tell
    ],
)  # of 10 classes: 51.2 of 512 by guessing, 64.8 with two standard deviations more
def test_chance_is_what_guessing_may_reach(correct: int, images: int, chance: float, is_chance: bool) -> None:
    evaluator = TeacherTop1()
    evaluator.merge([Top1(correct, images, chance)])
    score = evaluator.score()
    assert score is not None
    assert score.guessing == (f"{100 * chance:.2f} %" if is_chance else "")


def test_probabilities_are_noticed() -> None:
    found = evaluated(([[0.2, 0.8, 0.0], [0.1, 0.3, 0.6]], torch.tensor([1, 2]))).score()
    assert found is not None
    assert "probabilities" in found.warning
    both = evaluated(([[0.2, 0.8, 0.0]], torch.tensor([1])), ([FIRST], torch.tensor([0]))).score()
    assert both is not None
    assert not both.warning
