"""All that a task must supply for the engine, the configuration and the exporter to serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from up.config.section import Part
from up.data.collate import collate
from up.data.records import Batch, Sample, SampleKey
from up.engine.evaluate import Evaluator
from up.engine.step import BatchStage, LossOf, Mixing, StepOutput
from up.errors import Problem, UserError
from up.files import write_json
from up.registry import Registry
from up.text import some_of

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
class DataReport:
    """What a task says about the data sets of a run before it begins."""

    lines: Sequence[str] = ()
    warnings: Sequence[Problem] = ()  # what is probably a mistake, with the key to change


def no_report(train: Any, test: Any) -> DataReport:
    """Nothing to say."""
    return DataReport()


def whole_sample(dataset: Any, index: int) -> Sample:
    """Sample ``index``, transforms included."""
    return dataset[SampleKey(0, index)]


def loss_in_record(net: nn.Module, batch: Batch) -> StepOutput:
    """The loss that the net's last module has put into the record, with what else is worth showing."""
    record = net(batch)
    if "loss" not in record:
        raise UserError(f"the net computes no loss, only {some_of(record)}. End the list `net` with a post_process.")
    loss = record["loss"]
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"the loss of the net is {got}, expected a scalar tensor. Write loss.mean() in the post_process.")
    return StepOutput(loss, record.get("scalars", {}), record)


def to_device(dataset: Any, device: torch.device, channels_last: bool) -> BatchStage:
    """A stage that only moves: every tensor of a batch to the device, images in their memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def move(batch: Batch) -> Batch:
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return Batch({**batch, **moved}, image=moved["image"].contiguous(memory_format=memory_format))

    return move


def figures_only(evaluator: Evaluator, folder: Path, dataset: Any, save_result: bool) -> list[Path]:
    """``metrics.json``, and nothing about single samples."""
    write_json(folder / "metrics.json", evaluator.compute())
    return [folder / "metrics.json"]


def no_pipeline(reader: Any, transforms: Sequence[Any]) -> Any:
    """Raises ``UserError``: the task does not say how an image alone becomes a batch."""
    raise UserError("this task predicts nothing for single images (its plug-in hands over no pipeline).")


def nothing(*_: Any) -> None:
    """None, whatever is asked."""


def no_paths(kwargs: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    """No files to ask for beforehand."""
    return ()


def no_facts(*_: Any) -> Facts:
    """Nothing to fill in."""
    return {}


@dataclass(frozen=True, kw_only=True)
class TaskPlugin:
    """One task: its component tables, and how its data become losses, metrics and exports.

    What has no default every task must hand over. A data set has ``__len__``, ``__getitem__(SampleKey) -> Sample``,
    ``fingerprint()``, ``label_sets`` (None where samples cannot be weighed by labels) and ``max_bad``; ``sources`` (N,), the
    number of the list that a sample is from, only for the sampler ``list_balance``.
    """

    name: str
    tables: Mapping[str, Registry]
    """dataset, transform, batch_fn, head, post_process, loss, evaluator, hook, and whatever the task's parts nest."""
    input_size: Callable[[Sequence[Any]], Size | None]
    """From a list of transforms: the size of image that they produce, None where it varies."""
    example_batch: Callable[[nn.Module, Size, int], Batch]
    """A batch of noise with labels that the net can take: (net, image size, number of images)."""
    make_evaluator: Callable[[Any], Callable[[], Evaluator]]
    """From the evaluation data set: what makes a fresh evaluator."""
    unit: str = "value"
    """What the evaluator's metrics are given in, but for those whose names end in ``loss``: `up eval` prints it."""
    loss_of: LossOf = loss_in_record
    """The loss of a prepared batch."""
    collate: Callable[[Sequence[Sample]], Batch] = collate
    device_stage: Callable[[Any, torch.device, bool], BatchStage] = to_device
    """Takes off the data set, after ``mixing``, what can run on the device, and returns it: (data set, device, channels_last)."""
    filled_in: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By table: the arguments that may be left out in YAML because facts (those of the three fields below) fill them in."""
    data_facts: Callable[[Any], Facts] = no_facts
    """From the training data set: what the parts may want to know of it (``num_classes``, ``class_counts``, …)."""
    evaluation_facts: Callable[[Any], Facts] = no_facts
    """From the training data set: what the other data sets must agree with (the class names)."""
    module_facts: Callable[[str, Facts, nn.Module | None, Part], Facts] = no_facts
    """What a module of the net may leave out: (its table, the data's facts, the module before it, the part as written)."""
    named_paths: Callable[[Mapping[str, Any]], Iterable[tuple[str, str | None]]] = no_paths
    """From a data set's kwargs: the keys that name files and folders, with what is written there."""
    mixing: Callable[[Any, Any], Mixing | None] = nothing
    """Takes off the data set what mixes whole batches, and returns it or its batch function: (data set, batch function)."""
    write_reports: Callable[[Any, Path, Any, bool], list[Path]] = figures_only
    """Write the evaluator's findings into a folder: (evaluator, folder, data set, whether to write every result)."""
    result_stream: Callable[[Any, Path, bool], Callable[[Facts, Facts], None] | None] = nothing
    """What writes results as they come, where that is asked for: (data set, folder, memory_friendly)."""
    pipeline: Callable[[Any, Sequence[Any]], Any] = no_pipeline
    """From a reader and transforms: what loads images that no meta file lists, and finishes batches of them."""
    class_names: Callable[[Any], list[str] | None] = nothing
    """The names of the classes of a data set."""
    data_report: Callable[[Any, Any], DataReport] = no_report
    """What `up check` and the log say about the data: (training data set, evaluation data set or None)."""
    read_sample: Callable[[Any, int], Any] = whole_sample
    """Read one sample, to see whether it can be read: (data set, index). Raises ``UserError`` with its file."""
    export_spec: Callable[[nn.Module, Any, Sequence[Any], Any, bool], ExportSpec] | None = None
    """From (net, reader, test transforms, names of the classes, whether the graph ends in probabilities)."""


TASKS = Registry("task", {"cls": "up.tasks.cls.task:PLUGIN", "kd_cls": "up.tasks.cls.task:PLUGIN"})
