"""What the loop takes in."""

from __future__ import annotations

from collections.abc import Iterator

from up.data.records import Batch
from up.data.sampler import Cut, Share
from up.engine.updates import as_updates
from up.errors import UserError


def batch(images: int) -> Batch:
    return Batch(filename=["x"] * images)


def test_an_update_knows_what_its_micro_batches_count() -> None:
    """Of 5 images on two ranks this one has 3, in micro-batches of 2 and 1."""
    (update,) = as_updates([(0, [batch(2), batch(1)])], lambda step: Cut([Share(0.8, 0.4), Share(0.4, 0.4)], 5))
    assert [share.images for share in update.shares] == [0.8, 0.4]
    assert (update.last, update.images_of_all_ranks, update.failure) == (1, 5, None)


def test_what_cannot_be_read_comes_as_a_failure() -> None:
    def loader(error: Exception) -> Iterator[tuple[int, list[Batch]]]:
        yield 0, [batch(2)]
        raise error

    for error in (UserError("meta.txt:3: broken"), KeyError("a bug of ours, which the ranks vote on all the same")):
        good, bad = as_updates(loader(error), lambda step: Cut([Share(1.0, 0.5)], 2))
        assert good.failure is None
        assert bad.failure is error
        assert list(bad.batches) == []
