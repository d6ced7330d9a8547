"""What the loop takes in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from up.data.records import Batch
from up.errors import UserError
from up.runner.updates import as_updates


def batch(images: int) -> Batch:
    return Batch(filename=["x"] * images)


def test_shares_are_those_of_the_images() -> None:
    (update,) = as_updates([(0, [batch(3), batch(1)])])
    assert update.shares == [0.75, 0.25]
    assert (update.last, update.images_of_all_ranks, update.failure) == (1, 4, None)


def test_what_cannot_be_read_comes_as_a_failure() -> None:
    def loader() -> Iterator[tuple[int, list[Batch]]]:
        yield 0, [batch(2)]
        raise UserError("meta.txt:3: broken")

    good, bad = as_updates(loader())
    assert good.failure is None
    assert str(bad.failure) == "meta.txt:3: broken"
    assert list(bad.batches) == []


def test_our_own_bugs_are_not_hidden() -> None:
    def loader() -> Iterator[tuple[int, list[Batch]]]:
        raise KeyError("bug")
        yield 0, []

    with pytest.raises(KeyError):
        next(as_updates(loader()))
