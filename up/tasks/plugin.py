"""All that a task must supply for the engine, the configuration and the exporter to serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from up.config.model import Part
from up.data.records import Batch, Sample
from up.registry import Registry
from up.runner.evaluate import Evaluator
from up.runner.runner import BatchStage, LossOf, Mixing

Size = tuple[int, int]  # height, width
Facts = Mapping[str, Any]  # arguments by name that the program fills in where a part's signature has them


@dataclass(frozen=True)
class ExportSpec:
    """What an exporter must know of a trained network to serve exactly what was trained."""

    module: nn.Module  # (N, 3, H, W) -> (N, numbers), the numbers of all heads side by side
    input_size: Size
    channel_order: str  # RGB or BGR
    preprocess: Sequence[Mapping[str, Any]]  # from a file to the input, in the words of the package's manifest
    heads: Sequence[Mapping[str, Any]]  # likewise: name, start, end, type, activation, labels, thresholds, topk


@dataclass(frozen=True)
class TaskPlugin:
    """One task: its component tables, and how its data become losses, metrics and exports."""

    name: str
    tables: Mapping[str, Registry]
    """dataset, transform, batch_fn, head, post_process, loss, evaluator, hook, and whatever the task's parts nest."""
    supplied: Mapping[str, Sequence[str]]
    """By table: the arguments that may be left out in YAML because ``data_facts`` or ``module_facts`` supply them."""
    named_paths: Callable[[Mapping[str, Any]], Iterable[tuple[str, str | None]]]
    """From a data set's kwargs: the keys that name files and folders, with what is written there."""
    collate: Callable[[Sequence[Sample]], Batch]
    loss_of: LossOf
    data_facts: Callable[[Any], Facts]
    """From the training data set: what the parts may want to know of it (``num_classes``, ``class_counts``, …)."""
    later_data_facts: Callable[[Any], Facts]
    """From the training data set: what the other data sets must agree with (the class names)."""
    module_facts: Callable[[str, Facts, nn.Module | None, Part], Facts]
    """What a module of the net may leave out: (its table, the data's facts, the module before it, the part as written)."""
    input_size: Callable[[Sequence[Any]], Size | None]
    """From a list of transforms: the size of image that they produce, None where it varies."""
    device_stage: Callable[[Any, torch.device, bool], BatchStage]
    """Takes off the data set what can run on the device, and returns it: (data set, device, channels_last)."""
    mixing: Callable[[Any, Any], Mixing | None]
    """From the data set and its batch function: what mixes whole batches."""
    example_batch: Callable[[nn.Module, Size, int], Batch]
    """A batch of noise with labels that the net can take: (net, image size, number of images)."""
    make_evaluator: Callable[[Any], Callable[[], Evaluator]]
    """From the evaluation data set: what makes a fresh evaluator."""
    write_reports: Callable[[Any, Path, Any, bool], list[Path]]
    """Write the evaluator's findings into a folder: (evaluator, folder, data set, whether to write every result)."""
    result_stream: Callable[[Any, Path, bool], Callable[[Facts, Facts], None] | None]
    """What writes results as they come, where that is asked for: (data set, folder, memory_friendly)."""
    pipeline: Callable[[Any, Sequence[Any]], Any]
    """From a reader and transforms: what loads images that no meta file lists, and finishes batches of them."""
    class_names: Callable[[Any], list[str] | None]
    """The names of the classes of a data set."""
    export_spec: Callable[[nn.Module, Any, Sequence[Any], Any, bool], ExportSpec] | None = None
    """From (net, reader, test transforms, names of the classes, whether the graph ends in probabilities)."""


TASKS = Registry("task", {"cls": "up.tasks.cls.plugin:PLUGIN", "kd_cls": "up.tasks.cls.plugin:PLUGIN"})
