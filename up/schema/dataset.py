"""The section ``dataset``: what is read, in which order and in what batches."""

from __future__ import annotations

from typing import Annotated, Literal

from up.config.argument import AtLeast0, AtLeast1, FixedOnResume, FreeOnResume, PartOf
from up.config.section import Part, Section


class BatchSamplerKwargs(Section):
    """Arguments of a batch sampler."""

    sampler: Annotated[Part, PartOf("sampler"), FixedOnResume()] = Part(type="dist")
    """The order of the samples in training: dist, local, repeat_factor, class_balance, … Evaluation takes every image once, in
    the order of the meta file, whatever stands here."""
    batch_size: AtLeast1 = 1
    """Samples in a batch of one process; the global batch is this times the number of processes."""
    drop_last: Annotated[bool, FixedOnResume()] = False
    """Drop the last batch of an epoch when it is not full; in training only."""


class BatchSampler(Section):
    """How samples are grouped into batches."""

    type: Literal["base"] = "base"
    """The kind of batch sampler; there is one."""
    kwargs: BatchSamplerKwargs = BatchSamplerKwargs()
    """The sampler and the size of the batch."""


class DataLoaderKwargs(Section):
    """Arguments of a loader."""

    num_workers: AtLeast0 = 0
    """Processes that read and transform images; 0 does it in the training process. The result does not depend on it."""
    pin_memory: bool = False
    """Copy batches to pinned memory, from which a GPU fetches them without blocking."""
    drop_last: Annotated[bool | None, FixedOnResume()] = None
    """Another place for ``batch_sampler.kwargs.drop_last``; unset leaves it to that one."""
    shuffle: Annotated[bool | None, FixedOnResume()] = None
    """Whether to shuffle the training data; unset leaves it to the sampler."""
    fork_method: Literal["fork", "spawn"] = "fork"
    """How worker processes are started; ``--fork-method`` sets it."""
    batch_fn: Annotated[Part, PartOf("batch_fn")] | None = None
    """What mixes the images of a batch: batch_mixup, batch_cutmix, batch_cutmixup."""


class DataLoader(Section):
    """How batches reach the training process."""

    type: Literal["cls_base", "base"] = "cls_base"
    """The kind of loader; both names mean the same."""
    kwargs: DataLoaderKwargs = DataLoaderKwargs()
    """Workers, pinning and the batch function."""


class Source(Section):
    """One source of samples: ``dataset.train`` or ``dataset.test``."""

    dataset: Annotated[Part, PartOf("dataset")]
    """The data set: type ``cls`` or ``rank_cls``, with meta_file, image_reader, transformer and evaluator as kwargs."""
    batch_sampler: BatchSampler = BatchSampler()
    """Order and size of the batches. A block at ``dataset.batch_sampler`` is shared by all sources; one here that has a
    ``type`` replaces it, one without ``type`` changes only the keys it names."""
    dataloader: DataLoader = DataLoader()
    """Workers and batch function; shared and replaced like ``batch_sampler``."""


SHARED = tuple(Source.model_fields)
"""What may stand at ``dataset.*`` for all sources."""


class DatasetSection(Section):
    """The sources of samples, after what they share was merged into each.

    Where blocks have other names, ``data_pool: ["my_train:train", "val:test"]`` says which serves which phase.
    """

    train: Source | None = None
    """What is trained on."""
    test: Annotated[Source | None, FreeOnResume()] = None
    """What is evaluated on."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """Those of the sources, and what a file may write once for all of them."""
        return [*super().known_keys(), *SHARED]
