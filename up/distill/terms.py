"""Distillation terms: layers of the student beside those of a teacher, a loss between them, adapters and a weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from up.distill.losses import GKDLoss, MimicLoss
from up.errors import Problem, UserError
from up.models.feature_hooks import Activations, FeatureHooks, Shapes
from up.schema.mimic import Adapter
from up.types import Record

Shape = Sequence[int]
ACTIVATIONS = "activations"
"""The key under which a ``HookedStudent`` adds the activations to the record."""


class Pair(NamedTuple):
    """A layer of the student, the layer of a teacher that it follows, and the adapter between them, if any."""

    student: str
    teacher: str
    adapter: Adapter | None = None


@dataclass(frozen=True)
class DistillationTerm:
    """A job with one of its teachers. ``name`` is that of its loss in logs, ``place`` the key of the job in the file."""

    name: str
    job: str
    teacher: str
    loss: MimicLoss
    pairs: Sequence[Pair]
    weight: float = 1.0
    warm_up: int = -1
    place: str = "mimic"

    def factor(self, step: int) -> float:
        """Compute the factor of the summed distances at ``step`` (0-based)."""
        ramp = min(1.0, step / self.warm_up) if self.warm_up > 0 else 1.0
        return self.weight * ramp / len(self.pairs)

    def layers(self) -> Iterator[tuple[str, str, str]]:
        """List every layer: ``student`` or the teacher's name, the layer, and its key in the file."""
        for index, pair in enumerate(self.pairs):
            yield "student", pair.student, f"{self.place}.student.mimic_name.{index}"
            yield self.teacher, pair.teacher, f"{self.place}.{self.teacher}.mimic_name.{index}"

    def key(self, index: int) -> str:
        """Name the student's side of a pair among the activations: the adapter, or the layer itself."""
        pair = self.pairs[index]
        return pair.student if pair.adapter is None else f"{self.job}_{self.teacher}_{index}"

    def shape_problems(self, student: Shapes, teacher: Shapes) -> Iterator[Problem]:
        """Find the pairs whose shapes cannot be compared."""
        for index, pair in enumerate(self.pairs):
            ours, theirs = student[pair.student], teacher[pair.teacher]
            why, fix = self._misfit(pair.adapter, ours, theirs)
            if why:
                shapes = f"{pair.student} of the student gives {_text(ours)}, {pair.teacher} of {self.teacher} {_text(theirs)}"
                yield Problem(f"{shapes}; {why}", key=f"{self.place}.{self.teacher}.mimic_name.{index}", fix=fix)

    def _misfit(self, adapter: Adapter | None, ours: Shape, theirs: Shape) -> tuple[str | None, str]:
        """Say why two layers cannot be compared, and how to fix it."""
        fix = "Name layers that fit"
        if adapter is None:
            fitting = [kind for kind in get_args(Adapter) if self._misfit(kind, ours, theirs)[0] is None]
            fix += f", or put an adapter between them (student: {{adapter: {fitting[0]}}})" if fitting else ""
            return self.loss.shape_problem(ours, theirs), "" if self.loss.of_logits else f"{fix}."
        if isinstance(self.loss, GKDLoss):
            what = "gkd_loss weights the channels of the student's own layer, and an adapter changes them"
            return what, "Leave the adapter out."
        adapted = (*ours[:1], *theirs[1:])
        return adapter_problem(adapter, ours, theirs) or self.loss.shape_problem(adapted, theirs), f"{fix}."

    def __call__(
        self, student: Activations, teacher: Activations, labels: Tensor | None, gradients: Activations | None = None
    ) -> Tensor:
        """Sum the distances, without ``factor``; ``gradients`` by layer of the student, for a loss that they guide."""
        values = []
        for index, pair in enumerate(self.pairs):
            ours, theirs = _precise(student[self.key(index)]), _precise(teacher[pair.teacher])
            gradient = (gradients or {}).get(pair.student)
            if isinstance(self.loss, GKDLoss) and gradient is not None:
                values.append(self.loss.guided(ours, theirs, _precise(gradient)))
            else:
                values.append(self.loss(ours, theirs, labels))
        return torch.stack(values).sum()


class HookedStudent(nn.Module):
    """The student with feature hooks and adapters: all that trains, and the module that DistributedDataParallel wraps.

    ``adapters`` by name, each with its layer of the student. The record is the student's, with ``activations``: those of the
    hooks and those of the adapters.
    """

    def __init__(self, student: nn.Module, adapters: Mapping[str, tuple[str, nn.Module]], hooks: FeatureHooks) -> None:
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict({name: module for name, (_, module) in adapters.items()})
        self._layers = {name: layer for name, (layer, _) in adapters.items()}
        self._hooks = hooks

    def forward(self, batch: Record) -> Record:
        with self._hooks.recording() as seen:
            record = self.student(batch)
        adapted = {name: module(seen[self._layers[name]]) for name, module in self.adapters.items()}
        return {**record, ACTIVATIONS: {**seen, **adapted}}


@dataclass(frozen=True)
class DistillationTerms:
    """All terms of a run. ``task_loss``: add the task's own loss."""

    terms: Sequence[DistillationTerm]
    task_loss: bool = True

    def __call__(
        self, student: Activations, teachers: Mapping[str, Activations], batch: Record, step: int, task_loss: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss of each term at ``step``, by name; float32, under autocast too.

        ``task_loss``: the mean over the batch of the student's own loss, whose gradient guides ``gkd_loss``.
        """
        self._require_gradients(student)
        labels = self.require_labels(batch)
        gradients = self._gradients(student, task_loss)
        device = next(iter(student.values())).device.type
        with torch.autocast(device, enabled=False):
            return {term.name: term.factor(step) * term(student, teachers[term.teacher], labels, gradients) for term in self.terms}

    def layers(self) -> Iterator[tuple[str, str, str]]:
        """List the layers of all terms."""
        return (layer for term in self.terms for layer in term.layers())

    @property
    def guided_layers(self) -> list[str]:
        """The layers of the student at which the gradient of the task loss is needed."""
        return _unique(pair.student for term in self.terms if isinstance(term.loss, GKDLoss) for pair in term.pairs)

    @property
    def student_layers(self) -> list[str]:
        """The hooked layers of the student."""
        return _unique(pair.student for term in self.terms for pair in term.pairs)

    def layers_of(self, teacher: str) -> list[str]:
        """List the hooked layers of a teacher."""
        return _unique(pair.teacher for term in self.terms if term.teacher == teacher for pair in term.pairs)

    def require_labels(self, batch: Record) -> Tensor | None:
        """Return labels (B,) int64, of mixed images the one with the larger weight; None if no term needs labels.

        Raises ``UserError`` if there is not one label per image.
        """
        if not any(term.loss.needs_labels for term in self.terms):
            return None
        labels = batch.get("dominant", batch.get("gt"))
        if isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim == 2:
            return labels.argmax(1)
        if isinstance(labels, Tensor) and labels.ndim == 1:
            return labels
        has = f"labels of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else "none"
        raise UserError(f"the mimic loss needs one label per image, this data has {has}. Use kd_loss, which needs none.")

    def build_adapters(self, student: Shapes, teachers: Mapping[str, Shapes]) -> dict[str, tuple[str, nn.Module]]:
        """Build every adapter, by its name, with its layer of the student."""
        adapters: dict[str, tuple[str, nn.Module]] = {}
        for term in self.terms:
            for index, pair in enumerate(term.pairs):
                if pair.adapter is not None:
                    module = build_adapter(pair.adapter, student[pair.student], teachers[term.teacher][pair.teacher])
                    adapters[term.key(index)] = (pair.student, module)
        return adapters

    def _gradients(self, student: Activations, task_loss: Tensor | None) -> dict[str, Tensor]:
        """Compute the gradient of every image's task loss at ``guided_layers``; keeps the graph for the backward pass."""
        layers = self.guided_layers
        if not layers or task_loss is None or not task_loss.requires_grad:
            return {}
        tensors = [student[layer] for layer in layers]
        of_images = task_loss * len(tensors[0])  # the loss is their mean
        found = torch.autograd.grad(of_images, tensors, retain_graph=True, allow_unused=True)
        gradients = {layer: gradient.detach() for layer, gradient in zip(layers, found, strict=True) if gradient is not None}
        for layer in layers:
            if layer not in gradients:
                raise UserError(
                    f"gkd_loss: the task loss does not depend on {layer!r} as it is read: a later layer changes it in place, or no "
                    "layer uses it. Name another layer of the student."
                )
        return gradients

    def _require_gradients(self, student: Activations) -> None:
        for term in self.terms if torch.is_grad_enabled() else ():
            for index, pair in enumerate(term.pairs):
                if not student[term.key(index)].requires_grad:
                    raise UserError(
                        f"mimic.{term.job}.student.mimic_name: no gradient passes through {pair.student!r}: everything up to "
                        "it is frozen, or recomputed by gradient checkpointing. Name a layer that trains."
                    )


def adapter_problem(kind: Adapter, student: Shape, teacher: Shape) -> str | None:
    """Say why an adapter does not fit between these shapes, batch first; None if it does."""
    if kind == "conv1x1":
        fits = len(student) == len(teacher) == 4 and tuple(student[2:]) == tuple(teacher[2:])
        return None if fits else "conv1x1 goes between maps (B, C, H, W) of equal height and width"
    fits = len(student) == len(teacher) in (2, 3) and tuple(student[1:-1]) == tuple(teacher[1:-1])
    return None if fits else "linear goes between vectors (B, C), or tokens (B, N, C) of equal number"


def build_adapter(kind: Adapter, student: Shape, teacher: Shape) -> nn.Module:
    """Build a layer from the student's channels to the teacher's (the regressor of Romero et al. 2015, arXiv 1412.6550, §2.2)."""
    assert adapter_problem(kind, student, teacher) is None
    if kind == "conv1x1":
        return nn.Conv2d(student[1], teacher[1], kernel_size=1, bias=False)
    return nn.Linear(student[-1], teacher[-1])


def _text(shape: Shape) -> str:
    return f"(B, {', '.join(str(size) for size in shape[1:])})"


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _unique(layers: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(layers))
