"""The exportable part of a network, derived from its configuration: known before the network is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from up.build.data import build_reader, build_transforms
from up.bundle.answers import AnswerSpec, ClassesAnswer, OutputSpec
from up.bundle.operations import Operation, decode_of, input_size_of
from up.deploy.kestrel import package_path, problems_of, relabelled
from up.engine.evaluate import evaluation_mode
from up.errors import ConfigError, Problem, UserError
from up.files import unwritable
from up.tasks.declaration import served_by
from up.tasks.experiment import Experiment
from up.tasks.served import preprocessing_of


@dataclass(frozen=True)
class Exportable:
    """Module, preprocessing, outputs and answer of an export; ``input_shape`` is (channels, height, width)."""

    module: nn.Module
    operations: list[Operation]
    input_shape: tuple[int, int, int]
    outputs: list[OutputSpec]
    answer: AnswerSpec


def exportable(experiment: Experiment, net: nn.Module, class_names: list[str] | None, *, labels: bool = True) -> Exportable:
    """Derive the export of ``net``, trained or not, and leave it in evaluation mode.

    ``labels`` False leaves the labels unchecked if the data set is not read. Raises ``ConfigError`` with every setting of
    ``to_kestrel`` that contradicts the net and its test transforms, and for transforms and nets that cannot be exported.
    """
    settings = experiment.config.to_kestrel
    with experiment.placing("dataset.test.dataset.kwargs.transformer"):
        operations = preprocessing_of(build_reader(experiment, "test"), build_transforms(experiment, "test"))
        size = input_size_of(operations)
        if size is None:
            expected = "images of one size: it needs torch_center_crop, or torch_resize with [height, width]"
            raise UserError("leaves every image its own size", expected=expected)
        served = served_by(experiment.task, net, class_names, settings.add_softmax)
    experiment.raise_if_any(problems_of(settings, operations, size, served.answer, labels=labels))
    answer = relabelled(served.answer, settings) if labels and isinstance(served.answer, ClassesAnswer) else served.answer
    return Exportable(served.module, operations, (decode_of(operations).channels, *size), list(served.outputs), answer)


def export_problems(experiment: Experiment, net: nn.Module, class_names: list[str] | None, *, labels: bool = True) -> list[Problem]:
    """Find everything that ``to_onnx`` and ``to_kestrel`` would reject after training. ``net`` keeps its mode."""
    if experiment.config.dataset.test is None or not experiment.task.is_served:
        return []
    problems = list(_folder_problems(experiment))
    try:
        with evaluation_mode(net):
            exportable(experiment, net, class_names, labels=labels)
    except ConfigError as error:
        problems += error.problems
    return experiment.decoded.origins.locate(problems)


def require_exportable(experiment: Experiment, net: nn.Module, class_names: list[str] | None, *, labels: bool = True) -> None:
    """Raise ``ConfigError`` with the problems of an export if the file has a section ``to_kestrel``."""
    if is_for_export(experiment):
        experiment.raise_if_any(export_problems(experiment, net, class_names, labels=labels))


def is_for_export(experiment: Experiment) -> bool:
    """Whether the file has a section ``to_kestrel``."""
    return "to_kestrel" in experiment.config.model_fields_set


def _folder_problems(experiment: Experiment) -> Iterator[Problem]:
    """Check that something can be written to ``save_to``."""
    settings = experiment.config.to_kestrel
    if settings.save_to is None:
        return
    try:
        folder = package_path(Path(settings.save_to), settings).parent
    except UserError as error:
        yield Problem(str(error), key="to_kestrel.save_to")
        return
    if (reason := unwritable(folder)) is not None:
        what = f"{folder}: cannot write there: {reason}"
        yield Problem(what, key="to_kestrel.save_to", fix="Name another folder.")
