"""Build the data of an experiment: data sets, their order and batches, and the evaluation on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from up.build.experiment import missing_files
from up.config.parts import DerivedArguments
from up.config.section import Part
from up.config.signature import signature_of
from up.data.bad_images import BadImages
from up.data.collate import to_device
from up.data.dataset import KeyedDataset
from up.data.loader import EvalLoader, TrainLoader, Workers
from up.data.readers import Reader
from up.data.records import Batch, Dataset, SampleKey, Transform
from up.data.sampler import EvalBatches, Indices, Order, Shuffled, TrainBatches
from up.data.transforms.stages import DeviceStage
from up.distributed import group
from up.engine.evaluate import Evaluation
from up.engine.precision import Precision
from up.engine.step import BatchStage, Mixing
from up.errors import UserError
from up.models.preprocessing import ImagePreprocessing, of_operations
from up.schema.dataset import Source
from up.seed import key
from up.supernet.halves import Batching, Halves, PairedBatches, Reordered, halves_of
from up.supernet.section import is_architecture_search, reads_pairs, share_held_out
from up.tasks.experiment import Experiment
from up.tasks.task import InputSpec, Size
from up.text import some_of
from up.tracking.log import LOGGER

Phase = Literal["train", "test"]
PHASES: tuple[Phase, ...] = ("train", "test")
_HELD_OUT = 12  # purpose of a seed


def section_of(experiment: Experiment, source: Phase) -> Source:
    """Return the section of a source. Raises ``ConfigError`` if the file has none."""
    dataset = experiment.config.dataset
    section = dataset.train if source == "train" else dataset.test
    if section is None:
        raise experiment.error(f"is missing. Add the data to {source} on.", key=f"dataset.{source}")
    return section


def build_dataset(experiment: Experiment, source: Phase, derived: DerivedArguments | None = None) -> Dataset:
    """Build the data set of ``dataset.train`` or ``dataset.test``, its meta files read and checked."""
    section = section_of(experiment, source)
    dataset = whole_dataset(experiment, source, section.dataset, derived)
    if section.subset is None:
        return dataset
    with experiment.placing(f"dataset.{source}.subset"):
        return subset_in(dataset, Path(section.subset))


def whole_dataset(experiment: Experiment, source: Phase, part: Part, derived: DerivedArguments | None = None) -> Dataset:
    """Build ``part`` as the data set of a source, without its ``subset``."""
    config = experiment.config
    known = {"seed": config.runtime.random_seed, "train": source == "train", **(derived or {})}
    if config.trainer.max_epoch is not None and config.trainer.max_iter is None:
        known["total_epochs"] = config.trainer.max_epoch
    dataset: Dataset = experiment.build(part, "dataset", known, f"dataset.{source}.dataset")
    return dataset


def subset_in(dataset: Dataset, path: Path) -> Dataset:
    """Return the samples whose indices a JSON file lists. Raises ``UserError`` for another file, and for indices beyond the end."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        kept = np.array(listed if all(type(index) is int for index in listed) else [], dtype=np.int64)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({error})", expected="a JSON list of indices") from error
    if kept.ndim != 1 or not len(kept) or kept.min() < 0 or kept.max() >= len(dataset) or len(np.unique(kept)) < len(kept):
        raise UserError(f"{path}", expected=f"different indices from 0 to {len(dataset) - 1}, at least one")
    return part_of(dataset, kept)


def indices_of(experiment: Experiment, source: Phase, dataset: Dataset) -> Sequence[int]:
    """Return the index of each image of ``dataset`` in the whole data set of its source: those that ``subset`` lists, or all."""
    subset = section_of(experiment, source).subset
    if subset is None:
        return range(len(dataset))
    listed: list[int] = json.loads(Path(subset).read_text(encoding="utf-8"))
    return listed


def part_of(dataset: Dataset, kept: ArrayLike) -> Dataset:
    """Return the samples at the indices ``kept``. Raises ``UserError`` for a data set of a kind without subsets."""
    if not isinstance(dataset, KeyedDataset):
        raise UserError(f"{type(dataset).__name__} has no subsets", fix="Derive it from up.data.dataset.KeyedDataset.")
    return dataset.subset(np.asarray(kept, dtype=np.int64))


def notes_on(*datasets: Dataset | None) -> list[str]:
    """List the notes of data sets on how their lists of images were read, each once."""
    return list(dict.fromkeys(note for dataset in datasets for note in getattr(dataset, "notes", ())))


def derived_from_train(experiment: Experiment) -> DerivedArguments:
    """Return the derived arguments of the training data, such as the number of classes; empty if the data are not available."""
    if experiment.config.dataset.train is None or any(missing_files(experiment)):
        return {}
    return experiment.task.derived(build_dataset(experiment, "train"))


def completed_by_train(experiment: Experiment, known: DerivedArguments) -> DerivedArguments:
    """Add the derived arguments of the evaluation on ``dataset.test`` that follow from the training data, if available."""
    names = experiment.task.evaluation_from_data_only(section_of(experiment, "test").dataset)
    if all(name in known for name in names):
        return known
    found = derived_from_train(experiment)
    return {**{name: found[name] for name in names if name in found}, **known}


def build_transforms(experiment: Experiment, source: Phase) -> list[Transform]:
    """Build the transforms of a source without its data set."""
    place = f"dataset.{source}.dataset.kwargs.transformer"
    listed = section_of(experiment, source).dataset.kwargs.get("transformer") or []
    return [experiment.build(part, "transform", {}, f"{place}.{index}") for index, part in enumerate(listed)]


def build_reader(experiment: Experiment, source: Phase) -> Reader:
    """Build the image reader of a source, for images with complete paths."""
    place = f"dataset.{source}.dataset.kwargs.image_reader"
    dataset = section_of(experiment, source).dataset
    written = dataset.kwargs.get("image_reader")
    reader = signature_of(experiment.tables["dataset"].get(dataset.type)).parameters.get("image_reader")
    if written is None and (reader is None or not reader.required):  # the data set of a plug-in
        written = {"type": "fs_pillow"} if "fs_pillow" in experiment.tables.get("image_reader", ()) else None
    if written is None:
        raise experiment.error("is missing: it reads the images.", key=place)
    part = Part.model_validate(written)
    anywhere = {name: value for name, value in part.kwargs.items() if name != "image_dir"}
    built: Reader = experiment.build(Part(type=part.type, kwargs=anywhere), "image_reader", {}, place)
    return built


def input_spec_of(experiment: Experiment, source: Phase = "test") -> InputSpec | None:
    """Return the sizes of images after the transforms of ``source``, else of the other source; None where they are unknown."""
    other: Phase = "train" if source == "test" else "test"
    return spec_after(source, experiment) or spec_after(other, experiment)


def spec_after(source: Phase, experiment: Experiment) -> InputSpec | None:
    """Return the sizes of images after the transforms of a source; None without it."""
    if getattr(experiment.config.dataset, source) is None:
        return None
    return experiment.task.input_spec(build_transforms(experiment, source))


def channels_of(experiment: Experiment) -> int:
    """Return the channels of the images that the readers give; 3 where a reader does not say."""
    for source in PHASES:
        section = getattr(experiment.config.dataset, source)
        if section is not None and "image_reader" in section.dataset.kwargs:
            return int(getattr(build_reader(experiment, source), "channels", 3))
    return 3


def preprocessing_of_images(experiment: Experiment) -> ImagePreprocessing | None:
    """Return the preprocessing that the test transforms amount to; None without test data, and for other transforms."""
    if experiment.config.dataset.test is None:
        return None
    steps = [getattr(transform, "export_op", lambda: None)() for transform in build_transforms(experiment, "test")]
    operations = [step for step in steps if step is not None]
    return of_operations(operations, channels_of(experiment)) if len(operations) == len(steps) else None


def input_size_of(experiment: Experiment, source: Phase = "test") -> Size:
    """Return height and width of the images of ``source``, or an example of them.

    Raises ``ConfigError`` if images keep their own sizes.
    """
    spec = input_spec_of(experiment, source)
    if spec is None and not any(getattr(experiment.config.dataset, each) for each in PHASES):
        raise experiment.error("is missing: its transforms give the size of the images", key=f"dataset.{source}")
    if spec is None:
        what = "leaves every image its own size (expected torch_center_crop, or torch_resize with [height, width])"
        raise experiment.error(what, key=f"dataset.{source}.dataset.kwargs.transformer")
    return spec.size


def train_batches(experiment: Experiment, dataset: Dataset, *, ranks: int | None = None) -> TrainBatches:
    """Build the order of the training data, split into the steps of this rank; a search has held-out images in each step.

    ``ranks`` is their number in a run that does not train here.
    """
    section = section_of(experiment, "train")
    kwargs, loader = section.batch_sampler.kwargs, section.dataloader.kwargs
    settings: Batching = {
        "batch_size": kwargs.size,
        "accumulate": experiment.config.trainer.accumulate,
        "rank": group.rank(),
        "world_size": ranks or group.world_size(),
        "drop_last": kwargs.drop_last if loader.drop_last is None else loader.drop_last,
    }
    halves = halves_in(experiment, dataset)
    order = _order(experiment, dataset, None if halves is None else halves.weights)
    with experiment.placing("dataset.train.batch_sampler.kwargs.batch_size"):
        if halves is None:
            return TrainBatches(order, **settings)
        own = Reordered(order, halves.weights, len(order))
        if not reads_pairs(experiment):
            return TrainBatches(own, **settings)
        shuffled = Shuffled(size=len(halves.held_out), seed=key(experiment.config.runtime.random_seed, _HELD_OUT))
        return PairedBatches(own, Reordered(shuffled, halves.held_out, len(order)), **settings)


def _order(experiment: Experiment, dataset: Dataset, kept: Indices | None) -> Order:
    """Build the sampler of the file over all images, or over those ``kept``."""
    section = section_of(experiment, "train")
    labels, sources = dataset.label_sets, getattr(dataset, "sources", None)
    derived = {
        "size": len(dataset) if kept is None else len(kept),
        "labels": labels if kept is None or labels is None else labels.take(kept),
        "sources": sources if kept is None or sources is None else sources[kept],
        "seed": experiment.config.runtime.random_seed,
        "shuffle": section.dataloader.kwargs.shuffle,
    }
    known = {name: value for name, value in derived.items() if value is not None}
    order: Order = experiment.build(
        section.batch_sampler.kwargs.sampler, "sampler", known, "dataset.train.batch_sampler.kwargs.sampler"
    )
    return order


def halves_in(experiment: Experiment, dataset: Dataset) -> Halves | None:
    """Split the training data of a search for an architecture; None for other runs."""
    if not is_architecture_search(experiment):
        return None
    with experiment.placing("runtime.runner.kwargs"):
        share, seed = share_held_out(experiment), experiment.config.runtime.random_seed
        return halves_of(dataset.label_sets, len(dataset), share, seed)


def build_batch_fn(experiment: Experiment, derived: DerivedArguments) -> Mixing | None:
    """Build the batch function of the training data, if there is one."""
    part = section_of(experiment, "train").dataloader.kwargs.batch_fn
    place = "dataset.train.dataloader.kwargs.batch_fn"
    return experiment.build(part, "batch_fn", derived, place) if part else None


def build_device_side(
    experiment: Experiment, dataset: Dataset, derived: DerivedArguments, device: torch.device
) -> tuple[BatchStage, Mixing | None]:
    """Build the device side of training batches: the stage, then the mixing."""
    batch_fn = build_batch_fn(experiment, derived)
    with experiment.placing("dataset.train.dataset.kwargs.transformer"):
        stages = experiment.task.stages(dataset)
        return DeviceStage(stages.device, device, channels_last=experiment.config.runtime.channels_last), stages.mixing(batch_fn)


def train_loader(experiment: Experiment, dataset: Dataset, batches: TrainBatches, steps: range) -> TrainLoader:
    """Build the loader of the micro-batches of ``steps``."""
    return TrainLoader(
        dataset,
        batches,
        start_step=steps.start,
        end_step=steps.stop,
        workers=workers_of(section_of(experiment, "train"), group.device_for(experiment.config.runtime.device)),
        collate=experiment.task.collate,
    )


def example_batch(experiment: Experiment, net: nn.Module, device: torch.device) -> Batch | None:
    """Make a batch of two images of noise on the device; None where the size of images is unknown."""
    spec = input_spec_of(experiment)
    if spec is None:
        return None
    return to_device(experiment.task.example(net, spec.size, 2), device)


def workers_of(source: Source, device: torch.device | None = None) -> Workers:
    """Return the settings of the loader workers of a source; ``device``: a GPU to which batches are copied early."""
    kwargs = source.dataloader.kwargs
    number = 0 if kwargs.num_workers == "auto" else kwargs.num_workers
    return Workers(num_workers=number, pin_memory=kwargs.pin_memory, fork_method=kwargs.fork_method, device=device)


def build_evaluation(
    experiment: Experiment, trained: DerivedArguments, device: torch.device, precision: Precision, results: Path | None = None
) -> tuple[Evaluation, Dataset]:
    """Build the evaluation on ``dataset.test``, and its data set.

    ``trained`` are derived arguments of the training data. The task writes results batch by batch into ``results``.
    """
    task, section = experiment.task, section_of(experiment, "test")
    trained = completed_by_train(experiment, trained)
    dataset = build_dataset(experiment, "test", trained)
    batches = EvalBatches(
        len(dataset), batch_size=section.batch_sampler.kwargs.size, rank=group.rank(), world_size=group.world_size()
    )
    check_same_classes(experiment, trained, task.derived_for_evaluation(dataset))
    with experiment.placing("dataset.test.dataset.kwargs.transformer"):
        stage = DeviceStage(task.stages(dataset).device, device, channels_last=experiment.config.runtime.channels_last)
    bad_images = BadImages(
        max_bad=dataset.max_bad, total=len(dataset), on_new=lambda bad: LOGGER.warning("left out of the evaluation: %s", bad)
    )
    loader = EvalLoader(dataset, batches, workers=workers_of(section, device), collate=task.collate, bad_images=bad_images)
    with experiment.placing("dataset.test.dataset.kwargs.evaluator"):
        task.evaluator(dataset)
    is_shared, friendly = experiment.config.runtime.parallel == "fsdp", experiment.config.saver.memory_friendly
    padding = (lambda: task.collate([dataset[SampleKey(0, 0)]])) if is_shared else None
    stream = task.result_stream(dataset, results, friendly) if results is not None else None
    make = partial(task.evaluator, dataset)
    evaluation = Evaluation(
        loader, stage, make, precision, on_outputs=stream, padding=padding, bad_images=bad_images, intervals_of=task.intervals
    )
    return evaluation, dataset


def check_same_classes(experiment: Experiment, trained: DerivedArguments, tested: DerivedArguments) -> None:
    """Raise ``UserError`` when both data sets name their classes and differ."""
    theirs, own = trained.get("class_names"), tested.get("class_names")
    if isinstance(theirs, Sequence) and isinstance(own, Sequence) and theirs and own and list(theirs) != list(own):
        with experiment.placing("dataset.test.dataset.kwargs.class_names"):
            raise UserError(
                f"got {some_of(own, 5)}, but the net is trained on {some_of(theirs, 5)}: a label would mean different classes. "
                "Give the same list, or leave it out."
            )
