"""Contract of a task with the engine, the configuration and the exporter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from up.bundle.answers import Answer
from up.config.parts import DerivedArguments
from up.config.section import Part
from up.data.collate import collate
from up.data.dataset import KeyedDataset
from up.data.readers import Reader
from up.data.records import Batch, Dataset, Sample, SampleKey, Transform, image_count
from up.data.transforms.pipeline import ImagePipeline
from up.data.transforms.stages import Stages
from up.engine.evaluate import Evaluator
from up.engine.step import StepOutput
from up.errors import Problem, UserError
from up.files import write_json
from up.intervals import Interval
from up.models.net import Net
from up.models.weight_files import Weights
from up.registry import Registry
from up.schema.sections import NetModule
from up.tasks.report import Evidence, Outcomes, PageSection
from up.tasks.served import Served
from up.text import some_of
from up.types import Kwargs, Record

Size = tuple[int, int]  # height, width
LABELS_OR_TEACHER = "Give them labels, or train with a teacher, mimic.task_loss: False and meta_type: unlabelled (docs/distill.md)."
ResultStream = Callable[[Mapping[str, object], Mapping[str, object]], None]
Data = TypeVar("Data", bound=Dataset)


@dataclass(frozen=True)
class InputSpec:
    """Sizes (height, width) of the input images of a net.

    Every image has ``size``; with ``multiple`` images may have any height and width that are multiples of it, and ``size`` is an
    example, which `check`, `flops` and distillation use.
    """

    size: Size
    multiple: int | None = None

    @property
    def fixed(self) -> Size | None:
        """``size`` where every image has it."""
        return self.size if self.multiple is None else None


@dataclass(frozen=True)
class DataReport:
    """Report of a task about the data sets of a run before training."""

    lines: Sequence[str] = ()
    warnings: Sequence[Problem] = ()  # probable mistakes, with the key to change


@dataclass(frozen=True)
class TeacherScore:
    """Result of a teacher on validation images."""

    text: str
    """Result: ``top-1 99.16 % of 512 validation images``."""
    guessing: str = ""
    """Result of guessing, if the teacher does not exceed it."""
    warning: str = ""


class SoftLabel(NamedTuple):
    """A class that the loss compares an image with, and its weight: 1, or less where images are mixed."""

    name: str
    weight: float

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name} {self.weight:.3g}"


class Pipeline(Protocol):
    """Images that no meta file lists, from files to inputs of the net."""

    def load(self, source: Path | bytes) -> Sample:
        """Read and transform one image, in any thread; ``size`` is its (height, width) before. Raises ``BadImage``."""

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Move a collated batch to the device and finish its images there."""


class Task(ABC, Generic[Data]):
    """A task: the parts that its YAML may name, and its data, losses, metrics and predictions.

    ``Data`` is the class of its data sets. Abstract methods are required; the others have a default that fits a task whose net
    computes its own loss from images of one size.
    """

    name: ClassVar[str]
    """Name for ``runtime.task_names``."""
    parts: ClassVar[Mapping[str, Registry | Mapping[str, str]]]
    """By kind, the parts that the task adds to those of the engine: at least a ``dataset``, and the modules of its net.

    Kinds of the engine (``backbone``, ``hook``, ``image_reader``, ``transform``, …) are extended, a name that is taken
    is an error; any other kind is the task's own. Entries are ``{"masks": "my_task:Masks"}``, or a ``Registry`` of them.
    """
    net_kinds: ClassVar[Sequence[str]] = ("backbone", "neck", "head", "post_process")
    """Kinds of the modules of ``net:``, in the order in which a ``type`` is looked up."""
    fresh_kinds: ClassVar[Sequence[str]] = ("head",)
    """Kinds of modules that may keep their first weights where pretrained ones are for other classes."""
    class_layer: ClassVar[str] = ""
    """Layer in such a module with an output per class: for another number of classes it alone keeps its first weights.
    Empty: the whole module does."""
    unit: ClassVar[str] = "value"
    """Unit of the evaluator's metrics, except those whose names end in ``loss``; `up eval` prints it."""

    loss_is_mean: ClassVar[bool] = True
    """Whether the loss of a batch is the weighted mean of the losses of its halves; False where it compares images of a batch."""

    # --- required ---

    @abstractmethod
    def input_spec(self, transforms: Sequence[Transform]) -> InputSpec | None:
        """Return the sizes of the images that ``transforms`` produce; None where they do not fix them."""

    @abstractmethod
    def example(self, net: nn.Module, size: Size, images: int) -> Batch:
        """Draw a batch of noise with labels that the net accepts."""

    @abstractmethod
    def evaluator(self, data: Data) -> Evaluator:
        """Return a fresh evaluator for ``data``."""

    def metric_names(self, evaluator: Evaluator, found: Sequence[str], data: Data) -> Sequence[str]:
        """List the metrics of an evaluation of all of ``data``; ``found``: those of its first images. Empty without labels."""
        return found

    def in_unit(self, metric: float) -> str:
        """Format a metric with two decimals and its unit."""
        return f"{metric:.2f} %" if self.unit == "percent" else f"{metric:.2f}"

    # --- derived arguments ---

    def derived(self, data: Data) -> DerivedArguments:
        """Derive arguments of modules, losses and batch functions from the training data (``num_classes``, …)."""
        return {}

    def derived_for_evaluation(self, data: Data) -> DerivedArguments:
        """Derive arguments of the evaluation data set and its evaluator from the training data."""
        return {}

    def derived_for_module(self, kind: str, derived: DerivedArguments, before: nn.Module | None, part: Part) -> DerivedArguments:
        """Derive arguments of a module of the net: ``derived`` and ``in_plane``, the channels of the last feature before it.

        ``kind`` is its table, ``before`` the module that it follows, ``part`` the module in the YAML.
        """
        planes = getattr(before, "out_planes", None)
        return {**derived, "in_plane": planes[-1]} if planes else derived

    def derived_from_weights(self, weights: Weights | None, net: Sequence[NetModule]) -> DerivedArguments:
        """Derive arguments of ``net`` from a checkpoint instead of the training data, for evaluation and serving."""
        return {}

    def derived_for_teacher(self, weights: Weights | None, net: Sequence[NetModule], derived: DerivedArguments) -> DerivedArguments:
        """Derive arguments of a teacher's ``net`` from its weights, if there are any, otherwise from the training data."""
        return derived

    def derived_from_data_only(self, net: Sequence[NetModule]) -> Sequence[str]:
        """Name the derived arguments of ``net`` that no checkpoint has, so that evaluation reads ``dataset.train`` for them."""
        return ()

    def derived_from_net(self, net: nn.Module) -> DerivedArguments:
        """Derive arguments of the evaluation data set and its evaluator from the net, for use without the training data."""
        return {}

    def evaluation_from_data_only(self, dataset: Part) -> Sequence[str]:
        """Name the derived arguments of the evaluation that no checkpoint has, so that it reads ``dataset.train`` for them."""
        return ()

    def assumed(self, net: Sequence[NetModule]) -> DerivedArguments:
        """Assume derived arguments for a check of ``net`` that does not read the data."""
        return {}

    # --- data ---

    def is_labelled(self, dataset: Part) -> bool:
        """Return whether the data set of the YAML has labels; images without them train students of a teacher."""
        return True

    def class_names(self, data: Data) -> list[str] | None:
        """Return the names of the classes of a data set; saved in checkpoints."""
        return None

    def data_report(self, train: Data, test: Data | None) -> DataReport:
        """Report about the data for `up check` and the log."""
        return DataReport()

    def read_sample(self, data: Data, index: int) -> object:
        """Read one sample to see whether it can be read. Raises ``UserError`` with its file."""
        return data[SampleKey(0, index)]

    def pipeline(self, reader: Reader, transforms: Sequence[Transform]) -> Pipeline:
        """Return the loading of single images; by default the reader and the transforms alone."""
        return ImagePipeline(reader, transforms)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples to a batch, in a worker."""
        return collate(samples)

    def stages(self, data: Data) -> Stages:
        """Return the transforms of a data set by where they run: in the workers, on the device, mixing batches there.

        Raises ``UserError`` for transforms that do not fit together.
        """
        return data.stages if isinstance(data, KeyedDataset) else Stages()

    def targets(self, batch: Batch, class_names: Sequence[object] | None) -> list[list[SoftLabel]] | None:
        """List the classes that the loss compares each row of a prepared batch with, the heaviest first; None if there are none.

        ``class_names`` are those of the data set, a list for each head where there are several. Pages show them.
        """
        return None

    # --- loss and results ---

    def loss(self, net: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of a prepared batch: by default the ``loss`` in the record of the net.

        ``scalars`` in the record are shown and logged; ``weight`` and ``terms`` are for a loss that is not the mean over the
        images (``StepOutput``). Raises ``UserError`` where there is no scalar loss.
        """
        record = net(batch)
        if "loss" not in record:
            raise UserError(f"the net computes no loss, only {some_of(record)}. End the list `net` with a post_process.")
        loss = record["loss"]
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"the loss of the net is {got}, expected a scalar tensor. Write loss.mean() in the post_process.")
        return StepOutput(loss, record.get("scalars", {}), record, record.get("weight"), record.get("terms", {}))

    def image_losses(self, net: nn.Module, batch: Batch, record: Kwargs, rows: Sequence[slice]) -> list[float] | None:
        """Compute the training loss of some rows of a forward pass, each alone, for pages; None where it cannot be computed.

        ``record`` is that of the whole ``batch``. By default the last module of the net runs again on the rows.
        """
        if not isinstance(net, Net):
            return None
        try:
            return [float(net.last(rows_of_record(record, batch, each))["loss"]) for each in rows]
        except (UserError, KeyError, RuntimeError, IndexError, ValueError):  # a loss of whole batches
            return None

    def figures(self, evaluator: Evaluator, class_names: Sequence[object] | None) -> dict[str, bytes]:
        """Draw figures (PNG) of an evaluation, by name, such as a confusion matrix; needs matplotlib."""
        return {}

    def class_scores(
        self, evaluator: Evaluator, class_names: Sequence[object] | None
    ) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """Return for each class, by name, whether each image is of it (n,), and its score (n,); empty where they are not kept."""
        return {}

    def result_stream(self, data: Data, folder: Path, memory_friendly: bool) -> ResultStream | None:
        """Return a callable that writes results batch by batch, where the configuration asks for it."""
        return None

    def write_reports(self, evaluator: Evaluator, folder: Path, data: Data, save_result: bool) -> list[Path]:
        """Write the evaluator's findings into ``folder``, with every single result if ``save_result``; returns the files."""
        write_json(folder / "metrics.json", evaluator.compute())
        return [folder / "metrics.json"]

    def intervals(self, evaluator: Evaluator) -> Mapping[str, Interval]:
        """Return the 95 % confidence intervals of the metrics that have one, in the unit of the task.

        Whatever prints a metric prints its interval.
        """
        return {}

    def report_evaluator(self, data: Data) -> Evaluator:
        """Return a fresh evaluator that keeps what ``report`` and ``outcomes`` need, by default the task's own."""
        return self.evaluator(data)

    def report(self, evidence: Evidence[Data]) -> Iterable[PageSection]:
        """Return the sections of `up report` about an evaluation: tables, galleries and drawings; by default none."""
        return []

    def outcomes(self, evaluator: Evaluator, data: Data) -> Outcomes | Sequence[Outcomes] | None:
        """Return the result of each image, by which `up compare` pairs runs; a list of them for several heads.

        None if the task has no results of single images.
        """
        return None

    def teacher_evaluator(self, data: Data) -> Evaluator:
        """Return a fresh evaluator for the teachers of a distillation, by default the task's own.

        It gets the record of a teacher's net, completed by the student's post_process.
        """
        return self.evaluator(data)

    def teacher_score(self, evaluator: Evaluator) -> TeacherScore | None:
        """Return the score of a teacher, whose ``teacher_evaluator`` has collected all images; None if they give none."""
        name = evaluator.main_metric
        return TeacherScore(f"{name} {evaluator.compute()[name]:.4g} of validation images")

    # --- serving ---

    @property
    def is_served(self) -> bool:
        """Whether the task defines ``serve``: predicts for single images and exports."""
        return type(self).serve is not Task.serve

    def serve(self, net: nn.Module, class_names: list[str] | None, activated: bool) -> Served:
        """Return the module, the outputs and the answer that serve ``net``, which is in evaluation mode.

        ``class_names`` are those of the checkpoint or the data; ``activated``: the outputs are probabilities.
        """
        self.check_served()
        raise NotImplementedError

    def check_served(self) -> None:
        """Raise ``UserError`` for a task that cannot predict or export."""
        if not self.is_served:
            what = f"the task {self.name} predicts nothing for single images and has no export: it does not define `serve`."
            raise UserError(what)

    def listed(
        self, meta_file: Path, meta_type: str, image_dir: str | None, answer: Answer, transforms: Sequence[Transform]
    ) -> Data:
        """Return the labelled images of a list or folder, to evaluate a package with this ``answer`` and its ``transforms``."""
        raise UserError(f"the task {self.name} does not evaluate packages: it does not define `listed`.")

    def with_images(self, dataset: Part, path: Path, class_names: Sequence[str] | None) -> Part:
        """Return ``dataset`` with the labelled images of the folder or list at ``path`` instead of its own, for `eval --test`.

        ``class_names`` are those of the net.
        """
        what = f"--test {path}: the task {self.name} does not evaluate other images: it does not define `with_images`"
        raise UserError(what, fix="Override the keys of the data set: -o dataset.test.dataset.kwargs.KEY=VALUE.")


def rows_of_record(record: Kwargs, batch: Batch, rows: slice) -> Record:
    """Return some rows of the record that a net returned for ``batch``, without the loss."""
    images = image_count(batch)
    cut: Record = {}
    for name, value in record.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == images:
            cut[name] = value[rows]
        elif isinstance(value, list | tuple) and name not in batch and all(map(torch.is_tensor, value)):
            cut[name] = [each[rows] for each in value]  # such as features, one of each resolution
        elif isinstance(value, list | tuple) and len(value) == images:
            cut[name] = value[rows]
        elif name not in ("loss", "scalars", "weight", "terms"):
            cut[name] = value
    return cut


AnyTask = Task[Dataset]
TASKS = Registry("task", {"cls": "up.tasks.cls.task:CLASSIFICATION"})
