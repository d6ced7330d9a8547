"""Teachers: frozen nets beside the student, loaded from a file, with feature hooks on their layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
import yaml
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from up.config.nodes import read_plain
from up.data.records import Batch
from up.distill.section import GRAPHS, has_labels, weights_of_teachers
from up.errors import Problem, UserError
from up.models.feature_hooks import FeatureHooks, inspect_layers, split_layer
from up.models.net import Net
from up.models.norm import is_batch_norm
from up.models.onednn import compute_in_float32_where_bf16_is_wrong
from up.models.preprocessing import ImagePreprocessing
from up.models.pretrained import TIMM, classes_of_timm, is_of_timm, read_state
from up.models.regions import compile_regions
from up.models.weight_files import Weights, WeightsError, digest_of
from up.models.weights import load_weights
from up.schema.sections import CompileMode
from up.tasks.experiment import Experiment
from up.tasks.task import Size
from up.text import count, some_of
from up.types import Record

PHASES = ("train", "test")
NetBuilder = Callable[[str, str | None, Mapping[str, object]], Net]
"""Builds the net of a teacher from its name, the file of its weights and derived arguments."""


class Teacher:
    """A frozen net in evaluation mode: the activations of its ``layers`` for a batch, as constants of the student's graph.

    ``example`` is a batch that shows the shapes. ``batch_statistics`` lets BatchNorm normalize by the batch and keeps its
    stored statistics. ``columns`` are the teacher's classes in the order of the student's. The net stops after the last
    of the layers. Raises ``UserError`` for a layer that returns no tensor.
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
            for norm in filter(is_batch_norm, net.modules()):  # last: ``without`` sets frozen norms to evaluation
                norm.train()
                norm.momentum = 0.0  # type: ignore[assignment]  # keeps the stored statistics
                norm.num_batches_tracked = None  # type: ignore[assignment]  # a count of batches would change the digest
        self.logits, self.is_reordered = found.logits, columns is not None
        self.images = len(example["image"])
        """Number of images of the example, for which ``shapes`` hold."""
        self.shapes = {
            layer: (shape[0], len(columns), *shape[2:]) if columns is not None and layer in found.logits else shape
            for layer, shape in found.shapes.items()
        }

    def to(self, device: torch.device, *, channels_last: bool = False, compile_mode: CompileMode | None = None) -> Teacher:
        """Move to the student's device and memory format; compile the net up to the last layer."""
        self.net.to(device)
        if device.type == "cpu":
            compute_in_float32_where_bf16_is_wrong(self.net)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        if compile_mode is not None:
            compile_regions(self._body, compile_mode)
        if self._columns is not None:
            self._columns = self._columns.to(device)
        return self

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode(), self._hooks.recording() as seen:
            inputs = unlabelled(batch)
            self._body({**inputs, "image": batch["image"].clone()} if self._spoils_image else inputs)
        # The student's graph cannot save tensors of inference mode; copying the few hooked ones costs nothing.
        return {layer: self._in_order(tensor) if layer in self._reordered else tensor.clone() for layer, tensor in seen.items()}

    def outputs(self, batch: Batch) -> Record:
        """Return the record of the whole net, with logits in the student's order of classes."""
        with torch.inference_mode():
            record: Record = self.net(unlabelled(batch))
            if isinstance(record.get("logits"), Tensor):
                record["logits"] = self._in_order(record["logits"])
            return record

    def digest(self) -> str:
        """Hash the weights, or the graph, and the order of classes by SHA-256."""
        if self._digest is None:
            columns = repr(None if self._columns is None else self._columns.tolist())
            graphs = "".join(getattr(module, "content_sha256", "") for module in self.net.modules())
            self._digest = digest_of(self.net.state_dict(), (columns + graphs).encode())
        return self._digest

    def _in_order(self, logits: Tensor) -> Tensor:
        return logits if self._columns is None else logits[:, self._columns]


def unlabelled(batch: Batch) -> Record:
    """Remove the labels, whose classes the teacher may not have: it computes no loss."""
    return {name: value for name, value in batch.items() if name != "gt"}


def _after_last(net: Net, layers: Sequence[str]) -> list[str]:
    """List the modules of the net that run after the last hooked one."""
    hooked = {split_layer(layer)[0].partition(".")[0] for layer in layers}
    last = max(index for index, name in enumerate(net.module_names) if name in hooked)
    return list(net.module_names[last + 1 :])


@dataclass(frozen=True)
class ClassMatch:
    """Match between the teacher's classes and the student's."""

    columns: list[int] | None = None  # the teacher's classes in the student's order, if it differs
    line: str = ""  # for the log
    problem: str = ""  # reason why they cannot be matched


def match_classes(teacher: str, ours: Sequence[str] | None, theirs: Sequence[object] | None) -> ClassMatch:
    """Match classes by name, or by number without names on both sides."""
    if ours is None or theirs is None:
        which = "neither names them" if ours is theirs else f"{'the data set' if ours is None else 'its file'} does not name them"
        return ClassMatch(line=f"{teacher}: its classes are matched with the student's by number: {which}")
    if list(ours) == list(theirs):
        return ClassMatch()
    if are_ids(theirs) and len(ours) == len(theirs) and not set(ours) & set(theirs):
        return ClassMatch(line=f"{teacher}: its classes are matched with the student's by number: it names them by WordNet ids")
    if not all(isinstance(name, str) for name in (*ours, *theirs)):
        return ClassMatch(problem=f"{teacher}: its heads are not those of the student. Expected the same heads and classes.")
    missing = [name for name in ours if name not in theirs]
    if missing:
        return ClassMatch(
            problem=f"{teacher}: lacks {count(len(missing), 'class')} of the student's {len(ours)}: {some_of(missing, 5)}. "
            f"It was trained on {len(theirs)} ({some_of(theirs, 5)}). Expected a teacher of the same classes."
        )
    left_out = f"; left out: {len(theirs) - len(ours)} of {len(theirs)}" if len(theirs) > len(ours) else ""
    line = f"{teacher}: its scores are put into the student's order of classes, by their names{left_out}"
    return ClassMatch([list(theirs).index(name) for name in ours], line)


def are_ids(names: Sequence[object]) -> bool:
    """Return whether classes are named by ids of WordNet, such as n01440764."""
    return all(isinstance(name, str) and re.fullmatch(r"n\d{8}", name) for name in names)


@dataclass(frozen=True)
class TeacherNet:
    """A teacher's net with its weights. ``key`` of the configuration names their file."""

    name: str
    key: str
    net: Net
    class_names: Sequence[object] | None = None
    sizes: Mapping[str, Size] = field(default_factory=dict)  # of its images in "train" and "test", if known
    lines: Sequence[str] = ()  # for the log
    preprocessing: ImagePreprocessing | None = None
    takes_other_sizes: bool = True


def classes_of_teacher(experiment: Experiment) -> dict[str, object]:
    """Derive the classes of training images without labels from their teacher; empty for images with labels, or named classes.

    Raises ``UserError`` for a teacher that cannot be read.
    """
    train = experiment.config.dataset.train
    if has_labels(experiment) or train is None or any(map(train.dataset.kwargs.get, ("class_names", "num_classes"))):
        return {}
    for name, (key, file) in weights_of_teachers(experiment).items():
        section = experiment.config.teachers[name]
        with _blamed_on(experiment, key), experiment.placing(key):
            if section[0].type in GRAPHS:
                from up.distill.onnx_teacher import OnnxTeacher  # reads packages: a plain training does not

                names = OnnxTeacher(file=str(file)).class_names
                known: Mapping[str, object] = {}
            elif file is None or is_of_timm(file):
                names, known = imagenet_ids(file or ""), {}
            else:
                weights = read_state(file)
                names, known = weights.class_names, experiment.task.derived_from_weights(weights, section)
        if names and isinstance(names[0], str):
            return {"class_names": list(names), "num_classes": len(names)}
        if names:
            return {"num_classes": [len(head) for head in names if isinstance(head, Sequence)]}
        if "num_classes" in known:
            return {"num_classes": known["num_classes"]}
    return {}


def imagenet_ids(source: str) -> list[str] | None:
    """Return the WordNet ids of the classes of weights ``timm:NAME`` that know ImageNet's; None for others."""
    if not source.startswith(TIMM):
        return None
    subset = infer_imagenet_subset({"num_classes": classes_of_timm(source)})
    return None if subset is None else list(ImageNetInfo(subset).label_names())


def load_teacher(
    experiment: Experiment, name: str, derived: Mapping[str, object], build_net: NetBuilder, *, files: bool
) -> TeacherNet:
    """Build a teacher and load its weights, random without ``files``. Raises ``UserError`` for a file that does not fit."""
    key, file = weights_of_teachers(experiment)[name]
    section = experiment.config.teachers[name]
    is_graph = section[0].type in GRAPHS
    with _blamed_on(experiment, key):
        weights = read_state(file) if files and file is not None and not is_graph else None
    with experiment.placing(name):
        net = build_net(name, file, experiment.task.derived_for_teacher(weights, section, derived))
    if is_graph:
        from up.distill.onnx_teacher import OnnxTeacher

        graph = net[section[0].name]
        assert isinstance(graph, OnnxTeacher)
        sizes = dict.fromkeys(PHASES, graph.input_size) if graph.input_size else {}
        return TeacherNet(name, key, net, graph.class_names, sizes, [f"{name}: {file}, by onnxruntime"], takes_other_sizes=False)
    if weights is None:
        return TeacherNet(name, key, net)
    with _blamed_on(experiment, key):
        report = load_weights(net, weights)  # a new head would give noise
    lines = [f"{name}: {line}" for line in report.lines()]
    names = weights.class_names or imagenet_ids(weights.source)
    return TeacherNet(name, key, net, names or None, _image_sizes(experiment, weights), lines, weights.preprocessing)


@contextmanager
def _blamed_on(experiment: Experiment, key: str) -> Iterator[None]:
    """Name ``key`` in errors about its file: a run may have several files of weights."""
    try:
        yield
    except WeightsError as error:
        experiment.raise_if_any([Problem(str(error), key=key)])


def _image_sizes(experiment: Experiment, weights: Weights) -> dict[str, Size]:
    """Read the image sizes in "train" and "test" from the transforms of the configuration in a checkpoint."""
    found: dict[str, Size] = {}
    config: object = None
    with suppress(yaml.YAMLError):
        config = read_plain(weights.config or "")
    for phase in PHASES:
        with suppress(UserError, KeyError, TypeError, AttributeError):
            listed = config["dataset"][phase]["dataset"]["kwargs"]["transformer"]  # type: ignore[index]
            spec = experiment.task.input_spec([experiment.build(part, "transform") for part in listed])
            found |= {phase: spec.fixed} if spec is not None and spec.fixed else {}
    return found
