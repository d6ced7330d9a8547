"""Features of frozen modules, computed once: one pass over the images fills a store, and steps read it instead of images.

The images go through the net in chunks that depend on neither the ranks nor interruptions, so that every run has the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from up.data.loader import ByKey, Collate, TrainLoader, Workers, fetched
from up.data.records import Batch, Sample, SampleKey
from up.data.sampler import Cut, TrainBatches
from up.distributed.failures import Vote, agree_on, on_all_ranks
from up.distributed.group import is_main, rank, world_size
from up.engine.bad_images import BadImageLog
from up.engine.evaluate import evaluation_mode, take_turns
from up.engine.hooks import Hook
from up.engine.precision import Precision
from up.engine.rows import KEY_BYTES, Keys, Store, pack, require_space, unpack
from up.engine.step import BatchStage
from up.errors import Problem, UserError
from up.models.net import COMPUTED, Net
from up.models.weight_files import digest_of
from up.text import count, duration
from up.tracking.log import LOGGER

CHUNK = 32  # images that go through the frozen modules at once
FEATURES = "features"  # the folder in the run folder
Form = dict[str, tuple[torch.dtype, tuple[int, ...]]]
_ON_HOST = ("index", "seed")


@runtime_checkable
class Condensing(Protocol):
    """A head whose first operation on the features has no parameters and makes them small, such as the mean over the image."""

    def condensed(self, features: Sequence[Tensor]) -> Tensor | None:
        """Reduce the features to a vector (B, D) that the head takes in their place, as a list of one; None if it cannot."""


class FixedViews(NamedTuple):
    """Views of every image: the data set with fixed transforms, the second with mirrored images, of which ``p`` is the share."""

    data: Sequence[ByKey]
    stage: BatchStage
    images: int
    p: float = 0.0
    name_of: Callable[[int], str] = str

    def of(self, key: SampleKey, seed: int) -> int:
        """Return the view of a visit: the draw of ``torch_random_horizontal_flip`` in it."""
        if len(self.data) == 1:
            return 0
        return int(torch.rand((), generator=torch.Generator().manual_seed(key.seed(seed))).item() < self.p)


@dataclass
class FeatureCache:
    """Features of the first ``frozen`` modules of ``net`` for all ``views``, in a folder of ``run``.

    Steps before ``until`` train the rest of the net on them. ``form`` has dtype and shape of the stored fields of an image, and
    ``identity`` what they depend on beside the weights.
    """

    net: Net
    frozen: int
    views: FixedViews
    precision: Precision
    form: Form
    until: int
    seed: int
    run: Path
    identity: Mapping[str, str]
    collate: Collate
    workers: Workers
    computed: int = 0
    """Images that this process has passed through the frozen modules."""
    _store: Store | None = field(default=None, init=False)
    _frozen: Net = field(init=False)

    def __post_init__(self) -> None:
        self._frozen = self.net.without(*self.net.module_names[self.frozen :])

    @property
    def bytes(self) -> int:
        """Bytes on disk of all features."""
        return self.views.images * len(self.views.data) * (self._row_bytes + KEY_BYTES)

    @property
    def _row_bytes(self) -> int:
        return sum(kind.itemsize * int(np.prod(shape)) for kind, shape in self.form.values())

    def fill(self, proposal: Callable[[], Vote], bad_images: BadImageLog, say: Callable[[str], object] = LOGGER.info) -> bool:
        """Compute the features that are missing, the ranks in turns; returns False if a signal or another rank's failure ended it.

        Raises the failure of this rank, and ``StorageError`` on every rank if the disk is too small.
        """
        store, begun = self._open(), perf_counter()
        with on_all_ranks():  # no rank adds rows before all know what is missing
            missing = [chunk for chunk in self._chunks() if not store.has(0, _keys(*chunk)).all()]
            growth = max(0, self.bytes - store.size())
            require_space(self.run, growth, setting="saver.save_dir", without="or set finetune.features: every_step")
        if missing:
            say(f"features: computing those of {count(sum(len(images) for _, images in missing), 'image')}")
        mine, found = missing[rank() :: world_size()], list[Problem]()

        def compute(batch: tuple[int, Batch] | None) -> None:
            if batch is not None:
                found.extend(bad for bad in batch[1].get("bad", ()) if bad)
                self._compute(store, *batch)

        with torch.inference_mode(), evaluation_mode(self.net):
            verdict, failure = take_turns(self._read(mine), compute, proposal)
        if failure is not None:
            raise failure
        if verdict is not Vote.GO:
            return False
        if agree_on(Vote.GO, bool(found))[1]:
            bad_images.note(0, bad_images.counted.new_in([{"bad": found}]))
        if missing:
            say(f"features: computed in {duration(perf_counter() - begun)}")
        store.refresh()
        self._store = store
        return True

    def remove(self) -> None:
        """Remove the features from the disk, on the main rank."""
        if is_main():
            rmtree(self.run / FEATURES, ignore_errors=True)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Read the features of ``samples``, which have only keys, and what the loss compares with."""
        assert self._store is not None, "filled before the first step"
        index, views = (torch.tensor([sample[name] for sample in samples]) for name in ("index", "view"))
        rows, found = self._store.read(0, (2 * index + views).numpy().astype(np.uint64))
        assert found.all(), "every image has its features"
        fields = unpack(torch.from_numpy(rows), [(kind, int(np.prod(shape))) for kind, shape in self.form.values()])
        shaped = {name: value.view(-1, *shape) for value, (name, (_, shape)) in zip(fields, self.form.items(), strict=True)}
        return Batch(
            shaped,
            filename=[self.views.name_of(number) for number in index.tolist()],
            index=index,
            seed=torch.tensor([sample.seed for sample in samples]),
            bad=[None] * len(samples),
            **{COMPUTED: self.frozen},
        )

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the keys of a visit; ``batch`` reads its features."""
        return Sample(index=key.index % self.views.images, seed=key.seed(self.seed), view=self.views.of(key, self.seed))

    def features_of(self, prepared: Batch) -> dict[str, Tensor]:
        """Compute the fields to store for a batch on the device, with autocast as in a step; ``features`` is the condensed one.

        Raises ``UserError`` if the head cannot take a vector in place of its features.
        """
        head = self.net[self.net.module_names[self.frozen]]
        assert isinstance(head, Condensing)
        with self.precision.autocast():
            vector = head.condensed(self._frozen(prepared)["features"])
        if vector is None:
            raise UserError(f"{type(head).__name__} reads more than one pooled feature", fix="Compute them at every step.")
        kept = {name: value for name, value in prepared.items() if isinstance(value, Tensor) and name not in ("image", *_ON_HOST)}
        return {**kept, "features": vector}

    def _compute(self, store: Store, view: int, batch: Batch) -> None:
        fields = self.features_of(self.views.stage(batch))
        store.append(0, _keys(view, batch["index"].tolist()), pack(fields[name] for name in self.form))
        self.computed += len(batch["index"])

    def _read(self, chunks: Sequence[tuple[int, Sequence[int]]]) -> Iterator[tuple[int, Batch]]:
        """Read the images of chunks, in the order of their views."""
        for view, data in enumerate(self.views.data):
            keys = ([SampleKey(0, index) for index in images] for of, images in chunks if of == view)
            yield from ((view, batch) for batch in fetched(data, keys, workers=self.workers, collate=self.collate))

    def _chunks(self) -> Iterator[tuple[int, range]]:
        for view in range(len(self.views.data)):
            for start in range(0, self.views.images, CHUNK):
                yield view, range(start, min(start + CHUNK, self.views.images))

    def _open(self) -> Store:
        """Open the folder of these features; the main rank removes those of other weights or images."""
        form = {name: f"{kind} {shape}" for name, (kind, shape) in self.form.items()}
        weights = digest_of(self._frozen.state_dict())[:16]
        identity = {**self.identity, **form, "weights": weights, "images in a chunk": str(CHUNK)}
        folder = self.run / FEATURES / sha256(repr(identity).encode()).hexdigest()[:16]
        with on_all_ranks():
            for other in folder.parent.glob("*") if is_main() else ():
                if other != folder:
                    rmtree(other)
        return Store(folder, row_bytes=self._row_bytes, identity=identity, setting="saver.save_dir")


def _keys(view: int, images: Sequence[int]) -> Keys:
    return np.array([2 * index + view for index in images], np.uint64)


class FeatureSteps:
    """Steps on cached features up to ``cache.until``, then those on images: what ``TrainLoader`` is to a run without a cache."""

    def __init__(
        self,
        cache: FeatureCache,
        batches: TrainBatches,
        steps: range,
        *,
        fill: Callable[[], bool],
        on_images: Callable[[range], TrainLoader],
    ) -> None:
        self._cache, self._batches, self._steps = cache, batches, steps
        self._fill, self._on_images = fill, on_images

    def cut(self, step: int) -> Cut:
        """Weigh each micro-batch of a step, and count the images of the step on all ranks."""
        return self._batches.cut(step)

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        first, until, end = self._steps.start, self._cache.until, self._steps.stop
        if first < until:
            if not self._fill():
                yield first, []  # the vote before the step ends the run
                return
            yield from TrainLoader(
                self._cache, self._batches, start_step=first, end_step=min(until, end), collate=self._cache.batch
            )
        if until < end:
            self._cache.remove()  # every rank has read its last step: they exchange gradients in it
            yield from self._on_images(range(max(first, until), end))


class FeatureRemoval(Hook):
    """Remove the cached features of a finished run."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FEATURES

    def on_end(self, step: int, reason: str) -> None:
        if reason == "done":
            rmtree(self._folder, ignore_errors=True)
