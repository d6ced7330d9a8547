"""The section ``dataset``: data sets, order and batches."""

from __future__ import annotations

from typing import Annotated, Literal

from up.config.argument import AtLeast1, Between, FixedOnResume, FreeOnResume, Name, PartOf
from up.config.section import Part, Section

AUTO_SIZE = 32
"""Images of a batch where ``auto`` is not chosen by a measurement: in commands that do not train."""


class BatchSamplerKwargs(Section):
    """Arguments of a batch sampler."""

    sampler: Annotated[Part, PartOf("sampler"), FixedOnResume()] = Part(type="dist")
    """The order of the samples in training: dist, local, repeat_factor, class_balance, … Evaluation takes every image once, in
    the order of the meta file, whatever the sampler."""
    batch_size: AtLeast1 | Literal["auto"] = 1
    """Samples per batch of one process; the global batch size is this times the number of processes. ``auto`` is the largest power
    of two that fits into memory and leaves an epoch 8 steps; the run's ``config.yaml`` has the number."""
    drop_last: Annotated[bool, FixedOnResume()] = False
    """Drop the last batch of an epoch if it is not full; in training only."""

    @property
    def size(self) -> int:
        """``batch_size`` as a number."""
        return AUTO_SIZE if self.batch_size == "auto" else self.batch_size


class BatchSampler(Section):
    """Order and size of batches."""

    type: Literal["base"] = "base"
    """Kind of batch sampler; ``base`` is the only one."""
    kwargs: BatchSamplerKwargs = BatchSamplerKwargs()
    """The sampler and the size of the batch."""


class DataLoaderKwargs(Section):
    """Arguments of a loader."""

    num_workers: Annotated[int, Between(0, 1024)] | Literal["auto"] = 0
    """Number of worker processes that read and transform images; 0 uses the training process, ``auto`` chooses by the processors of
    the host. Results do not depend on it."""
    pin_memory: bool = False
    """Copy batches to pinned memory, so that transfers to the GPU do not block."""
    drop_last: Annotated[bool | None, FixedOnResume()] = None
    """Another place for ``batch_sampler.kwargs.drop_last``; unset uses that one."""
    shuffle: Annotated[bool | None, FixedOnResume()] = None
    """Shuffle the training data; unset leaves it to the sampler."""
    fork_method: Literal["fork", "spawn"] = "fork"
    """Start method of worker processes; ``--fork-method`` sets it."""
    batch_fn: Annotated[Part, PartOf("batch_fn")] | None = None
    """Mixing of the images of a batch: batch_mixup, batch_cutmix, batch_cutmixup."""


class DataLoader(Section):
    """Loading of batches."""

    type: Literal["cls_base", "base"] = "cls_base"
    """Kind of loader; both names mean the same."""
    kwargs: DataLoaderKwargs = DataLoaderKwargs()
    """Workers, pinning and the batch function."""


class Source(Section):
    """A source of samples: ``dataset.train`` or ``dataset.test``."""

    dataset: Annotated[Part, PartOf("dataset")]
    """The data set: type ``cls`` or ``rank_cls``, with meta_file, image_reader, transformer and evaluator as kwargs."""
    subset: Name | None = None
    """JSON file with the indices of the images to use, in the order of the data set; unset uses all. ``up search`` writes such
    files for its holdout."""
    batch_sampler: BatchSampler = BatchSampler()
    """Order and size of the batches. A block at ``dataset.batch_sampler`` is shared by all sources; one here that has a
    ``type`` replaces it, one without ``type`` changes only the keys it names."""
    dataloader: DataLoader = DataLoader()
    """Workers and batch function; shared and replaced like ``batch_sampler``."""


SHARED = tuple(name for name in Source.model_fields if name != "subset")
"""Keys that may be at ``dataset.*`` for all sources."""


class DatasetSection(Section):
    """The sources of samples.

    Where blocks have other names, ``data_pool: ["my_train:train", "val:test"]`` says which serves which phase.
    """

    train: Source | None = None
    """Training data."""
    test: Annotated[Source | None, FreeOnResume()] = None
    """Evaluation data."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """Those of the sources, and the keys that they may share."""
        return [*super().known_keys(), *SHARED]
