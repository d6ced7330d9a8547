"""What a package says of a network, derived from its configuration; all of it is known before the network is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from up.build.data import build_reader, build_transforms
from up.bundle.manifest import Head
from up.bundle.operations import Operation
from up.deploy.kestrel import label_problems, package_path, preprocessing_problems, relabelled
from up.engine.evaluate import evaluation_mode
from up.errors import ConfigError, Problem, UserError
from up.files import unwritable
from up.tasks.experiment import Experiment
from up.tasks.task import ExportSpec

_OPERATIONS: TypeAdapter[list[Operation]] = TypeAdapter(list[Operation])


@dataclass(frozen=True)
class Served:
    """The export of a network: its module, its preprocessing, its heads with their labels."""

    spec: ExportSpec
    operations: list[Operation]
    heads: list[Head]


def served(experiment: Experiment, net: nn.Module, class_names: Any, *, labels: bool = True) -> Served:
    """What the export of ``net`` says; the net may be trained or not, and is in evaluation mode afterwards.

    ``labels`` False leaves the labels unchecked, where the data set is not read. Raises ``ConfigError`` with every setting of
    ``to_kestrel`` that contradicts the net and its test transforms, and for transforms and nets that cannot be exported.
    """
    task, settings = experiment.task, experiment.config.to_kestrel
    with experiment.placing("dataset.test.dataset.kwargs.transformer"):
        reader, transforms = build_reader(experiment, "test"), build_transforms(experiment, "test")
        spec = task.export_spec(net, reader, transforms, class_names, settings.add_softmax)
    if spec is None:
        raise UserError(f"{experiment.path}: runtime.task_names: the task {task.name} has no export yet.")
    operations, heads = _OPERATIONS.validate_python(list(spec.preprocess)), [Head(**head) for head in spec.heads]
    problems = [
        *preprocessing_problems(settings, operations=operations, size=spec.input_size, order=spec.channel_order),
        *(label_problems(settings, heads) if labels else ()),
    ]
    experiment.raise_if_any(problems)
    return Served(spec, operations, relabelled(heads, settings) if labels else heads)


def export_problems(experiment: Experiment, net: nn.Module, class_names: Any, *, labels: bool = True) -> list[Problem]:
    """Whatever ``to_onnx`` and ``to_kestrel`` would refuse after training, with its place. ``net`` keeps its mode."""
    if experiment.config.dataset.test is None or not experiment.task.has_export:
        return []
    problems = list(_folder_problems(experiment))
    try:
        with evaluation_mode(net):
            served(experiment, net, class_names, labels=labels)
    except ConfigError as error:
        problems += error.problems
    return experiment.decoded.origins.locate(problems)


def require_exportable(experiment: Experiment, net: nn.Module, class_names: Any, *, labels: bool = True) -> None:
    """Raise ``ConfigError`` for what an export would refuse, if the file asks for one by a section ``to_kestrel``."""
    if is_for_export(experiment):
        experiment.raise_if_any(export_problems(experiment, net, class_names, labels=labels))


def is_for_export(experiment: Experiment) -> bool:
    """Whether the file has a section ``to_kestrel``."""
    return "to_kestrel" in experiment.config.model_fields_set


def _folder_problems(experiment: Experiment) -> Iterator[Problem]:
    """A ``save_to`` that nothing can be written to."""
    settings = experiment.config.to_kestrel
    if settings.save_to is None:
        return
    try:
        folder = package_path(Path(settings.save_to), settings).parent
    except UserError as error:
        yield Problem(str(error), key="to_kestrel.save_to")
        return
    reason = unwritable(folder)
    if reason is not None:
        yield Problem(f"{folder}: nothing can be written there: {reason}. Name another folder.", key="to_kestrel.save_to")
