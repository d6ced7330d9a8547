"""From a checked experiment to its data: data sets, their order and batches, the evaluation on them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch

from up.distributed import group
from up.schema.sections import Part, Source
from up.config.signature import signature_of
from up.data.bad_images import BadImages
from up.data.loader import EvalLoader, Workers
from up.data.records import SampleKey
from up.data.sampler import EvalBatches, TrainBatches
from up.errors import Problem, UserError
from up.build.experiment import missing_files
from up.tasks.experiment import Experiment
from up.engine.evaluate import Evaluation
from up.tracking.log import LOGGER
from up.engine.precision import Precision
from up.engine.step import BatchStage, Mixing
from up.tasks.task import InputSpec, Size
from up.text import some_of


def section_of(experiment: Experiment, source: Literal["train", "test"]) -> Source:
    """The section of a source. Raises ``UserError`` when the file has none."""
    section = getattr(experiment.config.dataset, source)
    if section is None:
        experiment.raise_if_any([Problem(f"is missing. It says what to {source} on.", key=f"dataset.{source}")])
    return section  # type: ignore[no-any-return]


def build_dataset(experiment: Experiment, source: Literal["train", "test"], facts: Mapping[str, Any] | None = None) -> Any:
    """The data set of ``dataset.train`` or ``dataset.test``, its meta files read and checked."""
    section = section_of(experiment, source)
    known = {"seed": experiment.config.runtime.random_seed, "train": source == "train", **(facts or {})}
    return experiment.build(section.dataset, "dataset", known, f"dataset.{source}.dataset")


def notes_on(*datasets: Any) -> list[str]:
    """What the ``notes`` of data sets, if they have any, say of how their lists of images were read; each line once."""
    return list(dict.fromkeys(note for dataset in datasets for note in getattr(dataset, "notes", ())))


def derived_from_train(experiment: Experiment) -> Mapping[str, Any]:
    """What the training data tell of themselves, such as the number of classes; nothing where they are not there."""
    if experiment.config.dataset.train is None or any(missing_files(experiment)):
        return {}
    return experiment.task.derived(build_dataset(experiment, "train"))


def build_transforms(experiment: Experiment, source: Literal["train", "test"]) -> list[Any]:
    """The transforms of a source alone, without its images."""
    place = f"dataset.{source}.dataset.kwargs.transformer"
    listed = section_of(experiment, source).dataset.kwargs.get("transformer") or []
    return [experiment.build(part, "transform", {}, f"{place}.{index}") for index, part in enumerate(listed)]


def build_reader(experiment: Experiment, source: Literal["train", "test"]) -> Any:
    """The image reader of a source, for images that are named in full."""
    place = f"dataset.{source}.dataset.kwargs.image_reader"
    dataset = section_of(experiment, source).dataset
    written = dataset.kwargs.get("image_reader")
    if written is None and not signature_of(experiment.tables["dataset"].get(dataset.type)).takes("image_reader"):
        readers = experiment.tables.get("image_reader", ())
        written = {"type": "fs_pillow"} if "fs_pillow" in readers else None  # a data set of one's own that reads no files
    if written is None:
        experiment.raise_if_any([Problem("is missing: it reads the images.", key=place)])
    part = Part.model_validate(written)
    anywhere = {name: value for name, value in part.kwargs.items() if name != "image_dir"}
    return experiment.build(Part(type=part.type, kwargs=anywhere), "image_reader", {}, place)


def input_spec_of(experiment: Experiment) -> InputSpec | None:
    """Sizes of the images that the test transforms produce, else those of training; None where they tell nothing."""
    dataset = experiment.config.dataset
    sources: list[Literal["train", "test"]] = ["test", "train"]
    for source in sources:
        if getattr(dataset, source) is not None:
            spec = experiment.task.input_spec(build_transforms(experiment, source))
            if spec is not None:
                return spec
    return None


def input_size_of(experiment: Experiment) -> Size:
    """Height and width of the images that the net is given, or an example of them. Raises ``UserError`` where there is none."""
    spec = input_spec_of(experiment)
    if spec is None:
        what = "leaves every image its own size (expected torch_center_crop, or torch_resize with [height, width])"
        experiment.raise_if_any([Problem(what, key="dataset.test.dataset.kwargs.transformer")])
        raise AssertionError("refused")
    return spec.size


def train_batches(experiment: Experiment, dataset: Any) -> TrainBatches:
    """The order of the training data, cut into updates for this rank."""
    section = section_of(experiment, "train")
    kwargs, loader = section.batch_sampler.kwargs, section.dataloader.kwargs
    sampler = kwargs.sampler or Part(type="dist")
    facts = {
        "size": len(dataset),
        "labels": dataset.label_sets,
        "sources": getattr(dataset, "sources", None),
        "seed": experiment.config.runtime.random_seed,
        "shuffle": loader.shuffle,
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    place = "dataset.train.batch_sampler.kwargs"
    order = experiment.build(sampler, "sampler", facts, f"{place}.sampler")
    with experiment.placing(f"{place}.batch_size"):
        return TrainBatches(
            order, batch_size=kwargs.batch_size, accumulate=experiment.config.trainer.accumulate,
            rank=group.rank(), world_size=group.world_size(),
            drop_last=kwargs.drop_last if loader.drop_last is None else loader.drop_last,
        )


def device_side(
    experiment: Experiment, dataset: Any, facts: Mapping[str, Any], device: torch.device
) -> tuple[Mixing | None, BatchStage]:
    """What whole training batches pass on the device: first the stage, then the mixing.

    Both are taken off the transforms of ``dataset``, the last first: a mixing transform stands behind the stage's.
    """
    batch_fn = section_of(experiment, "train").dataloader.kwargs.batch_fn
    place = "dataset.train.dataloader.kwargs.batch_fn"
    built = experiment.build(batch_fn, "batch_fn", facts, place) if batch_fn else None
    with experiment.placing("dataset.train.dataset.kwargs.transformer"):
        mix = experiment.task.mixing(dataset, built)
        return mix, experiment.task.device_stage(dataset, device, experiment.config.runtime.channels_last)


def workers_of(source: Source) -> Workers:
    """How the batches of a source are fetched."""
    kwargs = source.dataloader.kwargs
    return Workers(num_workers=kwargs.num_workers, pin_memory=kwargs.pin_memory, fork_method=kwargs.fork_method)


def build_evaluation(
    experiment: Experiment, train_facts: Mapping[str, Any], device: torch.device, precision: Precision
) -> tuple[Evaluation, Any]:
    """The evaluation on ``dataset.test``, and its data set."""
    task, section = experiment.task, section_of(experiment, "test")
    dataset = build_dataset(experiment, "test", train_facts)
    batches = EvalBatches(
        len(dataset),
        batch_size=section.batch_sampler.kwargs.batch_size,
        rank=group.rank(),
        world_size=group.world_size(),
    )
    expect_same_classes(experiment, train_facts, task.derived_for_evaluation(dataset))
    with experiment.placing("dataset.test.dataset.kwargs.transformer"):
        stage = task.device_stage(dataset, device, experiment.config.runtime.channels_last)
    bad_images = BadImages(
        max_bad=dataset.max_bad, total=len(dataset), on_new=lambda bad: LOGGER.warning("left out of the evaluation: %s", bad)
    )
    loader = EvalLoader(dataset, batches, workers=workers_of(section), collate=task.collate, bad_images=bad_images)
    with experiment.placing("dataset.test.dataset.kwargs.evaluator"):
        task.evaluator(dataset)
    is_shared = experiment.config.runtime.parallel == "fsdp"
    padding = (lambda: task.collate([dataset[SampleKey(0, 0)]])) if is_shared else None
    return Evaluation(loader, stage, partial(task.evaluator, dataset), precision, padding=padding, bad_images=bad_images), dataset


def expect_same_classes(experiment: Experiment, trained: Mapping[str, Any], tested: Mapping[str, Any]) -> None:
    """A ``UserError`` when both data sets name their classes and differ: a label would mean two things."""
    theirs, own = trained.get("class_names"), tested.get("class_names")
    if theirs and own and list(theirs) != list(own):
        with experiment.placing("dataset.test.dataset.kwargs.class_names"):
            raise UserError(
                f"got {some_of(own, 5)}, but the net is trained on {some_of(theirs, 5)}: a label would mean two things. "
                "Give the same list, or leave it out."
            )
