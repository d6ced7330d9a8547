"""What the loop takes in: one entry an update, with its micro-batches, or with the reason why there are none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from up.data.records import Batch, image_count
from up.distributed import world_size
from up.errors import UserError


@dataclass(frozen=True)
class Update:
    """This rank's part of one optimizer update."""

    batches: Sequence[Batch]
    wait_s: float  # how long the loop stood still for it
    failure: UserError | None = None

    @property
    def last(self) -> int:
        """The number of the last micro-batch."""
        return len(self.batches) - 1

    @property
    def shares(self) -> list[float]:
        """Each micro-batch's share of the images, so that a loss is the mean over images however they are cut."""
        counts = [image_count(batch) for batch in self.batches]
        return [count / sum(counts) for count in counts]

    @property
    def images_of_all_ranks(self) -> int:
        """All ranks take equally many."""
        return world_size() * sum(image_count(batch) for batch in self.batches)


def as_updates(loader: Iterable[tuple[int, list[Batch]]]) -> Iterator[Update]:
    """The updates of a loader; one that cannot be read comes as its ``failure``, so that all ranks can vote on it."""
    fetched = iter(loader)
    while True:
        begun = time.perf_counter()
        try:
            _, batches = next(fetched)
        except StopIteration:
            return
        except UserError as error:
            yield Update([], time.perf_counter() - begun, failure=error)
            return
        yield Update(batches, time.perf_counter() - begun)
