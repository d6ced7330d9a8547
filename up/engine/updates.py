"""Input of the loop: one entry for each step, with its micro-batches or the failure to read them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from up.data.records import Batch
from up.data.sampler import Cut, Share


@dataclass(frozen=True)
class Update:
    """This rank's part of one step."""

    batches: Sequence[Batch]
    wait_s: float  # seconds that the loop waited for it
    failure: Exception | None = None
    cut: Cut = Cut([], 0)

    @property
    def last(self) -> int:
        """Index of the last micro-batch."""
        return len(self.batches) - 1

    @property
    def shares(self) -> list[Share]:
        """Share of each micro-batch, so that the mean over the ranks is the mean over images however they are cut."""
        return self.cut.shares

    @property
    def images_of_all_ranks(self) -> int:
        """Number of images in the step."""
        return self.cut.images


def as_updates(loader: Iterable[tuple[int, list[Batch]]], cut: Callable[[int], Cut]) -> Iterator[Update]:
    """Yield the steps of a loader with their ``cut``; a failure to read is yielded as the last one, for all ranks to vote on."""
    fetched = iter(loader)
    while True:
        begun = time.perf_counter()
        try:
            step, batches = next(fetched)
        except StopIteration:
            return
        except Exception as error:
            yield Update([], time.perf_counter() - begun, failure=error)
            return
        yield Update(batches, time.perf_counter() - begun, cut=cut(step))
