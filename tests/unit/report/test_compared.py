"""Results image by image, read from the files of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from up.errors import UserError
from up.report.compared import PREDICTIONS, read_outcomes
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.reports import outcomes_of, write_reports

NAMES = ["cat", "dog"]


def evaluated(scores: Tensor, gt: Tensor | None, *, multilabel: bool = False) -> ImageNetEvaluator:
    evaluator = ImageNetEvaluator(class_names=NAMES, multilabel=multilabel)
    batch = {"filename": [f"{at}.png" for at in range(len(scores))], "index": torch.arange(len(scores))}
    evaluator.update({"scores": scores}, batch if gt is None else {**batch, "gt": gt})
    return evaluator


@pytest.mark.parametrize("first", ["no label", "no prediction"])
def test_an_empty_set_in_the_first_row_is_read(first: str, tmp_path: Path) -> None:
    sets = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.8]])
    if first == "no prediction":
        sets, scores = scores.round(), sets
    evaluator = evaluated(scores, sets, multilabel=True)
    write_reports(evaluator, tmp_path, NAMES)
    found = read_outcomes(tmp_path / PREDICTIONS)
    assert found.correct == [False, True]
    assert [*found.labels] == (["", "cat;dog"] if first == "no label" else ["cat", "cat;dog"])
    (expected,) = outcomes_of(evaluator, NAMES)
    assert [*found.predictions] == [*expected.predictions]


def test_scores_that_are_not_finite_in_the_first_row_are_read(tmp_path: Path) -> None:
    evaluator = evaluated(torch.tensor([[float("nan"), 0.0], [0.2, 0.8]]), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="not finite"):
        write_reports(evaluator, tmp_path, NAMES)
    assert read_outcomes(tmp_path / PREDICTIONS).correct == [False, True]


def test_predictions_without_labels_are_an_error(tmp_path: Path) -> None:
    write_reports(evaluated(torch.tensor([[0.2, 0.8]]), None), tmp_path, NAMES)
    with pytest.raises(UserError, match="'label'"):
        read_outcomes(tmp_path / PREDICTIONS)
