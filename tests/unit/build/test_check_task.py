"""What the checks of a plug-in's task accept: data with missing targets, arrays, and losses with random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from up.build.check_task import check_data, check_loss
from up.data.collate import collate
from up.data.records import Batch, Sample, SampleKey
from up.engine.step import StepOutput
from up.errors import UserError


class Data:
    """Five samples with the field ``target``."""

    max_bad = 0.0
    label_sets = None

    def __init__(self, target: Callable[[], Any]) -> None:
        self.target = target

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: SampleKey) -> Sample:
        return Sample(image=torch.zeros(3, 4, 4), filename=f"{key.index}.png", target=self.target())

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize(
    "target",
    [
        lambda: float("nan"),
        lambda: torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
        lambda: np.array([[1.0, np.nan]]),
        lambda: np.zeros((0, 4), np.float32),
        lambda: [np.arange(2), "a"],
        lambda: {"boxes": np.arange(8).reshape(2, 4)},
    ],
)
def test_missing_targets_and_arrays_are_the_same_when_read_again(target: Callable[[], Any]) -> None:
    assert len(check_data(Data(target))) == 4


@pytest.mark.parametrize("draw", [lambda: torch.rand(2), lambda: [torch.rand(2).numpy()], lambda: float(torch.rand(()))])
def test_a_sample_that_draws_without_its_key_is_named_with_its_field(draw: Callable[[], Any]) -> None:
    with pytest.raises(UserError) as caught:
        check_data(Data(draw))
    assert "Data.__getitem__[" in str(caught.value)
    assert "'target'" in str(caught.value)


class Losses:
    """A task whose loss is the mean of ``loss`` over the images, or their sum."""

    loss_is_mean = True
    collate = staticmethod(collate)

    def __init__(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._loss = loss

    def loss(self, net: torch.nn.Module, batch: Batch) -> StepOutput:
        return StepOutput(self._loss(net(batch.image).flatten(1).mean(1)))


def checked_loss(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    samples = [Sample(image=torch.full((3, 4, 4), float(number)), filename=str(number)) for number in range(1, 5)]
    task: Any = Losses(loss)
    net: Any = torch.nn.Sequential(torch.nn.Identity())
    check_loss(task, net, lambda batch: batch, samples)


def test_a_loss_that_draws_random_numbers_is_not_compared_with_that_of_the_halves() -> None:
    """A dropout of the plug-in's own is as random in training as torch's, which the check switches off."""
    torch.manual_seed(0)
    checked_loss(torch.Tensor.mean)
    checked_loss(lambda each: torch.nn.functional.dropout(each, 0.5).mean())


def test_a_sum_is_an_error() -> None:
    with pytest.raises(UserError, match="Losses.loss"):
        checked_loss(torch.Tensor.sum)
