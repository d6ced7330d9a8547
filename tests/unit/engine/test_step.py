"""The data of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from up.data.records import Batch
from up.data.sampler import Cut, Share
from up.engine.step import data_of_steps
from up.errors import UserError


def batch(images: int) -> Batch:
    return Batch(filename=["x"] * images)


class Loader:
    """Yields one step of ``batches`` and then fails with ``error``, if there is one."""

    def __init__(self, batches: Sequence[Batch], cut: Cut, error: Exception | None = None) -> None:
        self.batches, self._cut, self.error = list(batches), cut, error

    def cut(self, step: int) -> Cut:
        return self._cut

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        yield 0, self.batches
        if self.error is not None:
            raise self.error


def test_the_data_of_a_step_know_the_shares_of_their_micro_batches() -> None:
    """Of 5 images on two ranks this one has 3, in micro-batches of 2 and 1."""
    loader: Any = Loader([batch(2), batch(1)], Cut([Share(0.8, 0.4), Share(0.4, 0.4)], 5))
    (data,) = data_of_steps(loader)
    assert [share.images for share in data.cut.shares] == [0.8, 0.4]
    assert (data.last, data.cut.images, data.failure) == (1, 5, None)


def test_data_that_cannot_be_read_are_a_failure() -> None:
    for error in (UserError("meta.txt:3: broken"), KeyError("a bug of ours, which the ranks vote on all the same")):
        loader: Any = Loader([batch(2)], Cut([Share(1.0, 0.5)], 2), error)
        good, bad = data_of_steps(loader)
        assert good.failure is None
        assert bad.failure is error
        assert list(bad.batches) == []
