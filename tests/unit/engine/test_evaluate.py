"""An evaluation: every batch voted on, failures of one rank raised by all, what the padding does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.harness.facts import facts, tells
from up.data.records import Batch
from up.distributed.failures import Vote
from up.engine import evaluate
from up.engine.ema import Ema, NoEma
from up.engine.evaluate import Evaluation, EvaluationInterrupted
from up.engine.precision import Precision
from up.errors import UserError
from up.intervals import Interval


class Counting(nn.Module):
    """Counts its forward passes."""

    forwards = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.forwards += 1
        return {"sum": batch.image.sum()}


class Total:
    main_metric = "total"

    def reset(self) -> None:
        self.total = 0.0

    def __init__(self) -> None:
        self.reset()

    def update(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        self.total += float(outputs["sum"])

    def state(self) -> float:
        return self.total

    def merge(self, states: Sequence[float]) -> None:
        self.total = sum(states)

    def compute(self) -> dict[str, float]:
        return {"total": self.total}


def batches(number: int, failure: Exception | None = None) -> Iterator[Batch]:
    for value in range(1, number + 1):
        yield Batch(image=torch.full((1,), float(value)))
    if failure:
        raise failure


def evaluation(found: Iterator[Batch], **kwargs: Any) -> Evaluation:
    return Evaluation(found, lambda batch: batch, Total, Precision(mode=None, device="cpu"), **kwargs)


def with_another_rank(monkeypatch: pytest.MonkeyPatch, says: Callable[[int], tuple[Vote, bool]]) -> None:
    """Another rank takes part in the votes: ``says`` what in the round (from 0)."""
    rounds = iter(range(1000))

    def agree_on(proposal: Vote, has_batch: bool) -> tuple[Vote, bool]:
        theirs, more = says(next(rounds))
        return max(proposal, theirs), has_batch or more

    monkeypatch.setattr(evaluate, "agree_on", agree_on)


def test_every_batch_once() -> None:
    net = Counting()
    assert evaluation(batches(3))(net, NoEma()).metrics == {"total": 6.0}
    assert net.forwards == 3


def test_intervals_come_with_the_metrics() -> None:
    found = evaluation(batches(2), intervals_of=lambda evaluator: {"total": Interval(1.0, 4.0, 2)})(Counting(), NoEma())
    assert found.intervals == {"total": (1.0, 4.0, 2)}


class Small(Counting):
    """Has memory for some images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, list[int]()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.sizes.append(len(batch.image))
        if len(batch.image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return super().forward(batch)


def images(*sizes: int) -> list[Batch]:
    values = torch.arange(float(sum(sizes))).split(list(sizes))
    return [Batch(image=part, filename=["x"] * len(part)) for part in values]


def test_a_batch_that_does_not_fit_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    """Each image counts once, with every set of weights; the limit is remembered, and said once for each halving."""
    net, seen = Small(2), list[int]()
    ema = Ema(net, decay=0.9)
    fitted = evaluation(iter(images(7, 7, 1)), on_outputs=lambda outputs, batch: seen.append(len(batch.image)))
    assert fitted(net, ema).metrics == {"total": sum(range(15)), "ema_total": sum(range(15))}
    assert net.sizes[:4] == [7, 3, 1, 1]
    assert max(net.sizes[2:]) == 1
    assert sum(seen) == 15
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert tells(caplog.text, "evaluation", "7 images", "3")


@pytest.mark.parametrize(("most", "shared", "fix"), [(0, False, "runtime.amp"), (2, True, "batch_size of dataset.test")])
def test_an_image_that_does_not_fit_ends_it(monkeypatch: pytest.MonkeyPatch, most: int, shared: bool, fix: str) -> None:
    """So does a batch where the ranks gather weights in each forward pass."""
    monkeypatch.setattr(evaluate, "is_shared", lambda net: shared)
    with pytest.raises(UserError, match=facts("evaluation", "CUDA out of memory", fix)):
        evaluation(iter(images(4)))(Small(most), NoEma())


def test_another_ranks_request_breaks_it_off_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with_another_rank(monkeypatch, lambda round_: (Vote.STOP if round_ == 2 else Vote.GO, True))
    net = Counting()
    with pytest.raises(EvaluationInterrupted):
        evaluation(batches(100))(net, NoEma())
    assert net.forwards == 2


def test_another_ranks_failure_ends_it_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_on_all_ranks(failure: Exception | None) -> None:
        assert failure is None
        raise UserError("val.txt:4: no image (rank 1)")

    with_another_rank(monkeypatch, lambda round_: (Vote.ERROR if round_ == 1 else Vote.GO, True))
    monkeypatch.setattr(evaluate, "raise_on_all_ranks", raise_on_all_ranks)
    net = Counting()
    with pytest.raises(UserError, match="rank 1"):
        evaluation(batches(100))(net, NoEma())
    assert net.forwards == 1


@pytest.mark.parametrize("left", [0, 2])
def test_an_own_failure_is_voted_on(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """In reading, and in the net; the others may have images left."""
    with_another_rank(monkeypatch, lambda round_: (Vote.GO, round_ < left))
    net = Counting()
    with pytest.raises(UserError, match="no image"):
        evaluation(batches(1, UserError("no image")))(net, NoEma())
    assert net.forwards == 1
    with pytest.raises(AttributeError):
        evaluation(iter([Batch(filename=["a"])]))(net, NoEma())


def test_a_rank_without_images_left_gathers_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forward passes count nothing."""
    with_another_rank(monkeypatch, lambda round_: (Vote.GO, round_ < 4))
    net = Counting()
    padded = evaluation(batches(2), padding=lambda: Batch(image=torch.full((1,), 100.0)))
    assert padded(net, NoEma()).metrics == {"total": 3.0}
    assert net.forwards == 4
    with_another_rank(monkeypatch, lambda round_: (Vote.GO, round_ < 4))
    alone = Counting()
    assert evaluation(batches(2))(alone, NoEma()).metrics == {"total": 3.0}
    assert alone.forwards == 2
