"""Open every image of a run before training, so that unreadable ones are found early."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from up.data.bad_images import BadImages, UnreadableImages
from up.data.loader import Workers, fetched
from up.data.records import Batch, Dataset, Sample, SampleKey
from up.data.sampler import EvalBatches
from up.errors import UserError
from up.processors import available_processors
from up.tasks.experiment import Experiment
from up.text import count

Track = Callable[[Iterable[Batch], int], Iterable[Batch]]  # yields batches unchanged and shows the progress

_BATCH = 32  # images that a worker opens at a time
_LISTED = 20  # unreadable images in the message


def open_images(
    experiment: Experiment, datasets: Iterable[tuple[str, Dataset]], track: Track, warn: Callable[[str], object]
) -> Iterator[str]:
    """Read every image of ``datasets``, pairs of the name in ``dataset:`` and the data set, in workers; yields a line for each.

    Raises ``UserError`` that lists the unreadable images where training would stop; ``warn`` is called where they are skipped.
    """
    refused: list[str] = []
    for name, data in datasets:
        unreadable = list(_unreadable(experiment, data, track))
        limit = BadImages(max_bad=data.max_bad, total=len(data)).limit
        yield f"{name}: {count(len(data), 'image')} opened, {len(unreadable):,} cannot be read"
        skips = getattr(data, "on_bad_image", "error") == "skip"
        if skips and len(unreadable) <= limit:
            for line in _capped(unreadable):
                warn(f"{line} (skipped, because dataset.{name} has on_bad_image: skip)")
        elif unreadable:
            refused += unreadable
            if skips:
                refused.append(
                    f"dataset.{name}: {count(len(unreadable), 'bad image')} of {len(data):,}, expected at most {limit:,} (max_bad)"
                )
    if refused:
        remedy = "Repair or remove them, or set on_bad_image: skip and max_bad to continue without them."
        raise UnreadableImages("\n".join([*_capped(refused), remedy]))


def _capped(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED
    return [*lines[:_LISTED], f"and {more:,} more"] if more > 0 else lines


def _unreadable(experiment: Experiment, data: Dataset, track: Track) -> Iterator[str]:
    batches = EvalBatches(len(data), batch_size=_BATCH, rank=0, world_size=1)
    workers = Workers(num_workers=min(available_processors(), len(data) // _BATCH))
    opened = fetched(_Opened(data, experiment.task.read_sample), batches, workers=workers, collate=_reasons)
    for batch in track(opened, len(batches)):
        yield from map(str, batch.bad)


class _Opened:
    """Data set of the reasons why images cannot be read, "" for readable ones."""

    def __init__(self, data: Dataset, read: Callable[[Dataset, int], object]) -> None:
        self._data, self._read = data, read

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: SampleKey) -> Sample:
        try:
            self._read(self._data, key.index)
        except UserError as error:
            return Sample(bad=str(error))
        return Sample(bad="")


def _reasons(samples: Iterable[Sample]) -> Batch:
    return Batch(bad=[sample.bad for sample in samples if sample.bad])
