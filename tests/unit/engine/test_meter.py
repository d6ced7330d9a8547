"""What a loss is the mean of: the cut into micro-batches and ranks changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.harness.ranks import Server, start
from tests.harness.weighing import KINDS, trained
from up.data.sampler import Share
from up.engine.meter import StepMeter, over_weights
from up.engine.precision import Precision
from up.engine.step import Mean, StepOutput


@pytest.fixture(scope="module")
def on_two_ranks(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two ranks train of each kind."""
    folder = tmp_path_factory.mktemp("ranks")
    target = folder / "found.pth"
    ranks = start(server, folder, [str(target)], entry="tests.harness.weighing:as_rank")
    assert ranks.wait() == [0, 0], ranks.said
    return torch.load(target)


def assert_close(ours: Any, theirs: Any) -> None:
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for step, (mine, other) in enumerate(zip(ours["scalars"], theirs["scalars"], strict=True)):
        assert mine == pytest.approx(other, abs=1e-5), step


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "terms"])
def test_accumulation_is_one_batch(kind: str) -> None:
    """Ten steps of two epochs and a half, each with a short last step."""
    assert_close(trained(kind, batch_size=2, accumulate=4), trained(kind, batch_size=8))


@pytest.mark.ranks
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_are_one(on_two_ranks: Any, kind: str) -> None:
    assert_close(on_two_ranks[kind], trained(kind, batch_size=8))


def test_a_mean_over_images_would_be_another() -> None:
    """The control: the losses of these tests do depend on the weight."""
    cut, whole = (trained("pixels", batch_size=size, accumulate=8 // size, weigh=False)["model"] for size in (2, 8))
    assert max((cut[name] - whole[name]).abs().max() for name in whole) > 1e-3


def weighed(meter: StepMeter, *outputs: StepOutput) -> list[float]:
    return [float(meter.weigh(output, Share(0.5, 0.25))) for output in outputs]


def test_a_default_weight_is_that_of_the_images_to_the_bit() -> None:
    meter = StepMeter()
    loss = torch.tensor(0.1234567)
    assert float(meter.weigh(StepOutput(loss, {"other": loss}), Share(0.3, 0.1))) == float(loss * 0.3)
    assert meter.scale() is None
    assert {name: float(value) for name, value in meter.take().items()} == {"loss": float(loss * 0.3), "other": float(loss * 0.3)}
    assert meter.take() == {}


def test_weights_of_micro_batches() -> None:
    """A mean of 2 over 3 pixels and one of 4 over 1: 2.5 over all; the scalar of images is their plain mean."""
    meter = StepMeter()
    outputs = [
        StepOutput(torch.tensor(loss), {"images": Mean(torch.tensor(loss))}, weight=weight) for loss, weight in ((2.0, 3), (4.0, 1))
    ]
    gradient = sum(weighed(meter, *outputs))
    scale = meter.scale()
    assert scale is not None
    assert gradient * float(scale) == pytest.approx(2.5)
    taken = meter.take()
    assert (float(taken["loss"]), float(taken["images"])) == (2.5, 3.0)


def test_micro_batches_without_a_scalar_do_not_take_part_in_its_mean() -> None:
    meter = StepMeter()
    for share, scalars in ((0.2, {"rare": 4.0}), (0.5, {}), (0.3, {"rare": 1.0, "last": 7.0})):
        found = {name: torch.tensor(value) for name, value in scalars.items()}
        meter.weigh(StepOutput(torch.tensor(1.0), {"usual": torch.tensor(2.0), **found}), Share(share, share))
    taken = {name: float(value) for name, value in meter.take().items()}
    assert taken == pytest.approx({"loss": 1.0, "usual": 2.0, "rare": (0.2 * 4 + 0.3 * 1) / 0.5, "last": 7.0})


def test_a_scalar_that_is_rare_on_one_rank_is_the_mean_over_all_that_have_it() -> None:
    ranks = [StepMeter(), StepMeter()]
    for meter, values in zip(ranks, ((10.0, None), (1.0, 1.0)), strict=True):
        for value in values:
            found = {} if value is None else {"rare": torch.tensor(value)}
            meter.weigh(StepOutput(torch.tensor(3.0), found), Share(0.5, 0.5))
    one, other = (meter.weighed_sums(of_ranks=True) for meter in ranks)
    assert set(one) == set(other)
    taken = over_weights({name: (one[name] + other[name]) / 2 for name in one})
    assert {name: float(value) for name, value in taken.items()} == {"loss": 3.0, "rare": 4.0}


@pytest.mark.parametrize("labels", [(-1, 0), (-1, -1)])
def test_nothing_to_average_counts_nothing(labels: Sequence[int]) -> None:
    """The mean over no label is 0 / 0."""
    model, meter, precision = torch.nn.Linear(1, 2), StepMeter(), Precision(mode=None, device="cpu")
    for label in labels:
        loss = F.cross_entropy(model(torch.ones(1, 1)), torch.tensor([label]), ignore_index=-1)
        precision.backward(meter.weigh(StepOutput(loss, weight=float(label >= 0)), Share(0.5, 0.25)))
    scale = meter.scale()
    assert scale is not None
    assert scale.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert meter.take()["loss"].isfinite()


def test_a_term_keeps_its_own_weight() -> None:
    """2 over 3 pixels and over 1 of two micro-batches; beside it a mean over images."""
    meter = StepMeter()
    term, loss = torch.tensor(10.0), torch.tensor(2.0)
    total = meter.weigh(StepOutput(loss + term, weight=7, terms={"mimic": Mean(term)}), Share(1.0, 0.5))
    assert float(total) == pytest.approx(12.0)
    assert meter.scale() is None
    assert {name: float(value) for name, value in meter.take().items()} == pytest.approx({"loss": 12.0, "mimic": 10.0})
