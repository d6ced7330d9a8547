"""The content of the page of ``up preview``: samples after each transform, the mixed batch, and the recipe's timeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np

from up.build.data import build_transforms, notes_on, section_of
from up.build.fit import fitted
from up.build.network import select_device
from up.build.outline import units_of
from up.build.parts import RunParts, build_parts
from up.build.training import ema_of
from up.data.dataset import KeyedDataset
from up.data.records import Batch, SampleKey, Transform
from up.data.transforms.viewing import Units, channels_note, pixels_of, with_boxes
from up.distributed.env import as_rank
from up.engine.step import Runner
from up.errors import UserError
from up.pages.images import thumbnail
from up.preview.batch import SIDE, RankData, Viewer, data_of_rank, digests, entry_of, source_of, stage_of
from up.preview.samples import Grid, Shown, is_of_batches
from up.preview.timeline import timeline
from up.tasks.experiment import Experiment
from up.text import count
from up.types import Record


class PreviewPage(NamedTuple):
    """Content of a page, as its JSON file has it, and its images by name, data URIs."""

    content: Record
    images: Mapping[str, str]


def preview(experiment: Experiment, *, step: int, images: int, ranks: int = 1) -> PreviewPage:
    """Return the page of ``step`` (from 1), as rank 0 of ``ranks`` gets it, with ``images`` samples after each transform.

    Raises the ``UserError`` that ``train`` would raise, and for a step that the run has not. Creates nothing.
    """
    with experiment.plugin_errors(), as_rank(0, ranks):
        device = select_device(experiment)
        experiment, choices = fitted(experiment, device)
        parts = build_parts(experiment, device, teacher_weights=False)
        require_step(step, parts.times.total)
        own = data_of_rank(experiment, parts, step - 1, 0, ranks)
        batch = plain_runner(experiment, parts, step - 1).prepare(own.data.batches[0], step - 1, 0)
        shown: dict[str, str] = {}
        samples, doubts = _samples(experiment, parts, own, images, shown)
    units, config = units_of(stage_of(parts, step - 1), parts.train_data), experiment.config
    viewer = Viewer(experiment, parts, units, shown)
    content = {
        "title": f"Preview of {experiment.path.name}",
        "config": str(experiment.path),
        "task": experiment.task.name,
        "step": step,
        "epoch": (step - 1) // parts.times.steps_per_epoch + 1,
        "rank": 0,
        "ranks": ranks,
        "seed": config.runtime.random_seed,
        "device": str(parts.device),
        "images": len(parts.train_data),
        "micro_batches": len(own.data.batches),
        "batch": {
            **viewer.form(batch),
            "images": list(viewer.rows(batch, own)),
            "mixing": None if parts.mix is None else type(parts.mix).__name__,
            "sha256": digests(batch),
        },
        "samples": samples,
        "transforms": _transforms(experiment, parts.train_data),
        "timeline": timeline(parts, ema_of(experiment, parts.net), step),
        "notes": [*map(str, choices), *notes_on(parts.train_data), *doubts, *view_notes(batch, units)],
    }
    return PreviewPage(content, shown)


def require_step(step: int, total: int) -> None:
    """Raise ``UserError`` unless a run of ``total`` steps has ``step``, counted from 1."""
    if not 1 <= step <= total:
        raise UserError("--step", got=step, expected=f"1 to {total:,}, the steps of the run as its log counts them")


def plain_runner(experiment: Experiment, parts: RunParts, step: int) -> Runner:
    """Return the runner that prepares batches; how they become a loss does not matter here."""
    stage, seed = stage_of(parts, step), experiment.config.runtime.random_seed
    return Runner(parts.net, loss_of=experiment.task.loss, stage=stage, mix=parts.mix, seed=seed)


def view_notes(batch: Batch, units: Units) -> Iterator[str]:
    """Say how the images of a batch are shown."""
    yield f"images are shown {units}"
    if channels := channels_note(batch["image"][0].shape[0]):
        yield channels
    if any("mask" in name for name in batch):
        yield "masks are not drawn"


def _samples(
    experiment: Experiment, parts: RunParts, own: RankData, images: int, figures: dict[str, str]
) -> tuple[list[Record], list[str]]:
    """Describe the first samples of a micro-batch after each transform, and as the evaluation crops them."""
    source = source_of(experiment, parts, own.step)
    if not isinstance(source, KeyedDataset):
        why = "the samples are fixed views (finetune.features)"
        if source is parts.train_data:
            why = f"{type(source).__name__} is not a KeyedDataset, whose transforms can run one by one"
        return [], [f"only the final images are shown: {why}"]
    grid, keys = Grid(source, experiment.task.collate, parts.device), own.keys[0][:images]
    grid.check(keys, own.data.batches[0], own.rows(0))
    evaluation, doubts = _evaluation_grid(experiment, source, grid)
    names = ["original", *_names(experiment, source.transforms)]
    targets = experiment.task.targets(own.data.batches[0], parts.class_names)
    listed = []
    for place, key in enumerate(keys):
        entry = entry_of(own, 0, place)
        labels = [] if targets is None else [name for name, _ in targets[own.rows(0)[place].start]]
        stages = [
            _stage_content(f"{number}. {name}" if number else name, stage, f"sample-{place}-{number}", figures)
            for number, (name, stage) in enumerate(zip(names, grid.stages(key), strict=True))
        ]
        found = None if evaluation is None else evaluation.final(SampleKey(0, key.index))
        crop = found and _stage_content("evaluation", found, f"sample-{place}-evaluation", figures)
        heading = f"{entry['file']}{': ' if labels else ''}{', '.join(labels)}"
        listed.append({**entry, "labels": labels, "heading": heading, "stages": stages, "evaluation": crop})
    return listed, doubts


def _stage_content(title: str, stage: Shown, figure: str, figures: dict[str, str]) -> Record:
    views = [with_boxes(pixels_of(image, stage.units), stage.boxes) for image in stage.images]
    figures[figure] = thumbnail(np.concatenate(views, axis=1), SIDE)
    first = stage.images[0]
    channels, height, width = first.shape
    form = f"{width} × {height}, {str(first.dtype).removeprefix('torch.')}"
    drawn = [f"{name.removesuffix('_factor')} {_in_words(value)}" for name, value in stage.drawn.items() if name != "fn_idx"]
    lines = [f"{count(len(views), 'view')} of {form}" if len(views) > 1 else form, stage.remark, *drawn]
    return {
        "title": title,
        "lines": [line for line in lines if line],
        "height": height,
        "width": width,
        "channels": channels,
        "drawn": stage.drawn,
        "changed": stage.is_changed,
        "boxes": stage.boxes,
        "images": [figure],
    }


def _in_words(value: object) -> str:
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def _evaluation_grid(experiment: Experiment, data: KeyedDataset, grid: Grid) -> tuple[Grid | None, list[str]]:
    transforms = [] if experiment.config.dataset.test is None else build_transforms(experiment, "test")
    if not transforms:
        return None, ["no evaluation crop is shown: dataset.test lists no transforms"]
    evaluated = copy(data.with_transforms(transforms))
    evaluated.train = False  # decoded in full, as the evaluation does
    return grid._replace(data=evaluated), []


def _transforms(experiment: Experiment, data: object) -> list[Record]:
    """List the transforms of the YAML with their arguments, and where they run."""
    if not isinstance(data, KeyedDataset):
        return []
    worker = [id(transform) for transform in data.stages.worker]
    listed = section_of(experiment, "train").dataset.kwargs.get("transformer") or []
    rows = []
    for number, (name, transform) in enumerate(zip(_names(experiment, data.transforms), data.transforms, strict=True)):
        kwargs = listed[number].get("kwargs") or {} if len(listed) == len(data.transforms) else {}
        where = "device, on whole batches" if is_of_batches(transform) else "worker" if id(transform) in worker else "device"
        text = ", ".join(f"{key}: {value}" for key, value in kwargs.items())
        rows.append({"name": name, "kwargs": kwargs, "text": text if len(text) < 300 else f"{text[:299]}…", "where": where})
    return rows


def _names(experiment: Experiment, transforms: Sequence[Transform]) -> list[str]:
    """Name transforms as the YAML does; by their classes where the data set has others."""
    listed = section_of(experiment, "train").dataset.kwargs.get("transformer") or []
    if len(listed) != len(transforms):
        return [type(transform).__name__ for transform in transforms]
    return [str(part["type"]) for part in listed]
