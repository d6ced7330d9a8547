"""Teachers: frozen nets that run beside the student, filled from a file, with feature hooks on their layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
import yaml
from torch import Tensor

from up.data.records import Batch
from up.distill.onnx_teacher import OnnxTeacher
from up.distill.section import weights_of_teachers
from up.errors import Problem, UserError
from up.models.feature_hooks import FeatureHooks, inspect_layers, split_layer
from up.models.net import Net
from up.models.norm import is_batch_norm
from up.models.weights import Weights, WeightsError, load_weights, read_state
from up.tasks.experiment import Experiment
from up.tasks.task import Size
from up.text import count, some_of
from up.types import Record

PHASES = ("train", "test")
NetBuilder = Callable[[str, str | None, Mapping[str, object]], Net]
"""Builds the net of a teacher: its name, the file that it will be filled from, derived arguments."""


class Teacher:
    """Returns the activations of ``layers`` of ``net`` for a batch, as constants of the student's graph.

    ``example`` is any batch that the net can take; it shows the shapes. ``batch_statistics`` lets BatchNorm normalise by
    the batch, while its stored statistics stay. ``columns`` are the teacher's classes in the order of the student's.
    The net is frozen, in evaluation mode, and ends after the last layer that is asked for. Raises ``UserError`` for a
    layer that returns nothing.
    """

    def __init__(
        self,
        name: str,
        net: Net,
        layers: Sequence[str],
        *,
        example: Batch,
        batch_statistics: bool = False,
        columns: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self.net = net.requires_grad_(False).eval()
        self._digest: str | None = None
        self._columns = None if columns is None else torch.tensor(columns)
        before = example["image"]._version
        found = inspect_layers(net, layers, unlabelled(example), owner=name)
        self._spoils_image = example["image"]._version != before
        self._reordered = found.logits if columns is not None else frozenset()
        self._hooks = FeatureHooks(net, layers, copied=found.overwritten)
        self._body = net.without(*_after_last(net, layers))
        if batch_statistics:
            _normalise_by_batch(net)  # last: a net that is put together anew lets frozen norms rest
        self.logits, self.is_reordered = found.logits, columns is not None
        self.images = len(example["image"])
        """Images of the example, which ``shapes`` are of."""
        self.shapes = {
            layer: (shape[0], len(columns), *shape[2:]) if columns is not None and layer in found.logits else shape
            for layer, shape in found.shapes.items()
        }

    def to(self, device: torch.device, *, channels_last: bool = False, compiled: bool = False) -> Teacher:
        """Move to where the student is."""
        self.net.to(device)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        if compiled:
            self._body.compile()
        if self._columns is not None:
            self._columns = self._columns.to(device)
        return self

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode(), self._hooks.recording() as seen:
            unseen = unlabelled(batch)
            self._body({**unseen, "image": batch["image"].clone()} if self._spoils_image else unseen)
        # The graph of the student cannot save tensors of inference mode; a copy of the few hooked ones costs nothing.
        return {layer: self._in_order(tensor) if layer in self._reordered else tensor.clone() for layer, tensor in seen.items()}

    def outputs(self, batch: Batch) -> Record:
        """The record of the whole net, its logits in the student's order of classes."""
        with torch.inference_mode():
            record: Record = self.net(unlabelled(batch))
            if isinstance(record.get("logits"), Tensor):
                record["logits"] = self._in_order(record["logits"])
            return record

    def digest(self) -> str:
        """SHA-256 of the weights, or of the graph, and of the order of classes."""
        if self._digest is None:  # they never change, so that once is enough
            found = hashlib.sha256(repr(None if self._columns is None else self._columns.tolist()).encode())
            for module in self.net.modules():
                found.update(getattr(module, "content_sha256", "").encode())
            for name, tensor in self.net.state_dict().items():
                found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._digest = found.hexdigest()
        return self._digest

    def _in_order(self, logits: Tensor) -> Tensor:
        return logits if self._columns is None else logits[:, self._columns]


def unlabelled(batch: Batch) -> Record:
    """The batch without labels, whose classes the teacher may not have: it computes no loss."""
    return {name: value for name, value in batch.items() if name != "gt"}


def _normalise_by_batch(net: Net) -> None:
    """Let every BatchNorm use the statistics of the batch and keep those that it has stored."""
    for module in net.modules():
        if is_batch_norm(module):
            module.train()
            module.momentum = 0.0  # type: ignore[assignment]


def _after_last(net: Net, layers: Sequence[str]) -> list[str]:
    """The modules of the net that run after the last hooked one."""
    hooked = {split_layer(layer)[0].partition(".")[0] for layer in layers}
    last = max(index for index, name in enumerate(net.module_names) if name in hooked)
    return list(net.module_names[last + 1 :])


@dataclass(frozen=True)
class ClassMatch:
    """How the teacher's classes go with the student's."""

    columns: list[int] | None = None  # the teacher's classes in the student's order, if they must be moved
    line: str = ""  # for the log
    problem: str = ""  # why they cannot be matched


def match_classes(teacher: str, ours: Sequence[str] | None, theirs: Sequence[object] | None) -> ClassMatch:
    """Match classes by name; without names on both sides their numbers must do."""
    if ours is None or theirs is None:
        which = "neither names them" if ours is theirs else f"{'the data set' if ours is None else 'its file'} does not name them"
        return ClassMatch(line=f"{teacher}: its classes are matched with the student's by number: {which}")
    if list(ours) == list(theirs):
        return ClassMatch()
    if not all(isinstance(name, str) for name in (*ours, *theirs)):
        return ClassMatch(problem=f"{teacher}: its heads are not those of the student. Expected the same heads and classes.")
    missing = [name for name in ours if name not in theirs]
    if missing:
        return ClassMatch(
            problem=f"{teacher}: does not know {count(len(missing), 'class')} of the student's {len(ours)}: {some_of(missing, 5)}. "
            f"It was trained on {len(theirs)} ({some_of(theirs, 5)}). Expected a teacher of the same classes."
        )
    left_out = f"; left out: {len(theirs) - len(ours)} of {len(theirs)}" if len(theirs) > len(ours) else ""
    line = f"{teacher}: its scores are put into the student's order of classes, by their names{left_out}"
    return ClassMatch([list(theirs).index(name) for name in ours], line)


@dataclass(frozen=True)
class TeacherNet:
    """A teacher's net with its weights. ``key`` is the key of the configuration that names them."""

    name: str
    key: str
    net: Net
    class_names: Sequence[object] | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)  # of the images that it saw in "train" and "test", if its file says so
    lines: Sequence[str] = ()  # for the log
    takes_other_sizes: bool = True


def load_teacher(
    experiment: Experiment, name: str, derived: Mapping[str, object], build_net: NetBuilder, *, files: bool
) -> TeacherNet:
    """Build and fill a teacher; without ``files`` its weights are drawn. Raises ``UserError`` for a file that does not fit."""
    key, file = weights_of_teachers(experiment)[name]
    section = experiment.config.teachers[name]
    is_graph = section[0].type == "onnx"
    with _blamed_on(experiment, key):
        weights = read_state(file) if files and file is not None and not is_graph else None
    with experiment.placing(name):
        net = build_net(name, file, experiment.task.derived_for_teacher(weights, section, derived))
    if is_graph:
        graph = net[section[0].name]
        assert isinstance(graph, OnnxTeacher)
        sizes = dict.fromkeys(PHASES, graph.input_size) if graph.input_size else {}
        return TeacherNet(name, key, net, graph.class_names, sizes, [f"{name}: {file}, by onnxruntime"], takes_other_sizes=False)
    if weights is None:
        return TeacherNet(name, key, net)
    with _blamed_on(experiment, key):
        report = load_weights(net, weights, heads=())  # a head that does not fit would teach noise
    lines = [f"{name}: {line}" for line in report.lines()]
    return TeacherNet(name, key, net, weights.class_names or None, _image_sizes(experiment, weights), lines)


@contextmanager
def _blamed_on(experiment: Experiment, key: str) -> Iterator[None]:
    """Name ``key`` for a file that cannot be used: a run may have several files of weights."""
    try:
        yield
    except WeightsError as error:
        experiment.raise_if_any([Problem(str(error), key=key)])


def _image_sizes(experiment: Experiment, weights: Weights) -> dict[str, Size]:
    """The sizes of the images that a checkpoint saw in "train" and "test", by the transforms of the configuration in it."""
    found: dict[str, Size] = {}
    for phase in PHASES:
        with suppress(UserError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            listed = yaml.safe_load(weights.config or "")["dataset"][phase]["dataset"]["kwargs"]["transformer"]
            spec = experiment.task.input_spec([experiment.build(part, "transform") for part in listed])
            found |= {phase: spec.fixed} if spec is not None and spec.fixed else {}
    return found
