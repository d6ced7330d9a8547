"""The score of a teacher before training, by the evaluator of any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.harness.facts import facts
from tests.harness.nets import Post, batch_of, net_of
from up.distill.preflight import collect
from up.distill.teachers import Teacher
from up.engine.evaluate import Evaluation
from up.engine.precision import Precision
from up.errors import NumericalError


class Confidence:
    """An evaluator that reads what only a post_process gives: the mean of the largest scores."""

    main_metric = "confidence"

    def __init__(self) -> None:
        self.values: list[float] = []

    def reset(self) -> None:
        self.values = []

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        self.values += outputs["scores"].amax(1).tolist()

    def state(self) -> list[float]:
        return self.values

    def merge(self, states: Sequence[list[float]]) -> None:
        self.values = [value for state in states for value in state]

    def compute(self) -> dict[str, float]:
        return {"confidence": sum(self.values) / len(self.values)}


EVALUATION = Evaluation([], lambda batch: batch, Confidence, Precision(mode=None, device="cpu"))


def teacher() -> Teacher:
    return Teacher("teacher", net_of(6, seed=1, post=False), ["head.classifier"], example=batch_of(2))


def test_outputs_are_completed_by_the_students_last_module() -> None:
    evaluator = Confidence()
    assert collect(evaluator, teacher(), [Post().eval()], EVALUATION, [batch_of(3), batch_of(2, seed=1)]) == ""
    net = net_of(6, seed=1).eval()
    expected = [value for batch in (batch_of(3), batch_of(2, seed=1)) for value in net(batch)["scores"].amax(1).tolist()]
    assert evaluator.values == pytest.approx(expected)


class Breaks(nn.Module):
    def forward(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        raise RuntimeError("heads differ\nmore")


@pytest.mark.parametrize(("modules", "says"), [([], "scores"), ([Breaks()], "heads differ")])
def test_an_evaluator_that_cannot_read_the_outputs_is_no_error(modules: list[nn.Module], says: str) -> None:
    assert says in collect(Confidence(), teacher(), modules, EVALUATION, [batch_of(2)])


def test_nan_ends_it() -> None:
    source, batch = teacher(), batch_of(3)
    batch.image[1, 0, 0, 0] = torch.nan
    with pytest.raises(NumericalError, match=facts("teacher", "0.png", "1.png")):
        collect(Confidence(), source, [], EVALUATION, [batch])
