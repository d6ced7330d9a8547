"""What a student is told to imitate: its layers beside those of the teachers, the distances between them, their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from up.distill.adapters import Kind, adapter, adapter_refusal
from up.distill.guided import GKDLoss
from up.distill.losses import MimicLoss
from up.distill.taps import Taps
from up.errors import UserError

Tapped = Mapping[str, Tensor]  # by layer
Shapes = Mapping[str, tuple[int, ...]]
TAPS = "taps"  # where the record of a net keeps what its taps have read


@dataclass(frozen=True)
class Pair:
    """One layer of the student that follows one of a teacher, through an adapter where there is one."""

    student: str
    teacher: str
    adapter: Kind | None = None


@dataclass(frozen=True)
class DistillationTerm:
    """What the student learns from one teacher in one job. ``name`` is what logs call its loss."""

    name: str
    job: str
    teacher: str
    loss: MimicLoss
    pairs: Sequence[Pair]
    weight: float = 1.0
    warm_up: int = -1

    def factor(self, step: int) -> float:
        """What the summed distances are multiplied by at update ``step``, from 0."""
        ramp = min(1.0, step / self.warm_up) if self.warm_up > 0 else 1.0
        return self.weight * ramp / len(self.pairs)

    def adapters(self) -> Iterator[tuple[str, Pair]]:
        """The pairs that have an adapter, each with the name of it."""
        for index, pair in enumerate(self.pairs):
            if pair.adapter is not None:
                yield self.key(index), pair

    def key(self, index: int) -> str:
        """Under what the record of taps has the student's side of a pair: the adapter's name, or the layer itself."""
        pair = self.pairs[index]
        return pair.student if pair.adapter is None else f"{self.job}_{self.teacher}_{index}"

    def refusals(self, student: Shapes, teacher: Shapes) -> Iterator[tuple[int, str]]:
        """The pairs whose shapes cannot be compared, each with a sentence that names both."""
        for index, pair in enumerate(self.pairs):
            ours, theirs = student[pair.student], teacher[pair.teacher]
            if pair.adapter is not None:
                is_guided = isinstance(self.loss, GKDLoss)
                own = "gkd_loss weights the channels of the student's own layer, and an adapter changes them" if is_guided else None
                why = own or adapter_refusal(pair.adapter, ours, theirs)
                compared = (*ours[:1], *theirs[1:])
                fix = "leave the adapter out" if is_guided else "name layers that fit"
            else:
                why, compared = None, ours
                fix = "" if self.loss.of_logits else _fix(ours, theirs)
            why = why or self.loss.refusal(compared, theirs)
            if why is not None:
                yield (
                    index,
                    f"{pair.student} of the student gives {_shape(ours)}, {pair.teacher} of {self.teacher} {_shape(theirs)}; "
                    f"{why}{f': {fix}' if fix else ''}",
                )

    def __call__(self, student: Tapped, teacher: Tapped, labels: Tensor | None, gradients: Tapped | None = None) -> Tensor:
        """The sum of the distances, without ``factor``; ``gradients`` by layer of the student, for a loss that they guide."""
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
    """The student with the adapters at its taps: all that trains, and what many ranks wrap.

    ``adapters`` by name, each with the layer of the student that it reads. The record is the student's, and under ``taps``
    what was read at its layers and what the adapters made of it.
    """

    def __init__(self, student: nn.Module, adapters: Mapping[str, tuple[str, nn.Module]], taps: Taps) -> None:
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict({name: module for name, (_, module) in adapters.items()})
        self._layers = {name: layer for name, (layer, _) in adapters.items()}
        self._taps = taps

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        with self._taps.recording() as seen:
            record = self.student(batch)
        adapted = {name: module(seen[self._layers[name]]) for name, module in self.adapters.items()}
        return {**record, TAPS: {**seen, **adapted}}


@dataclass(frozen=True)
class Mimic:
    """All terms. ``task_loss`` says whether the task's own loss counts too."""

    terms: Sequence[DistillationTerm]
    task_loss: bool = True

    def __call__(
        self, student: Tapped, teachers: Mapping[str, Tapped], batch: Mapping[str, Any], step: int, task_loss: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each term adds to the loss at update ``step``, by the name of its loss; float32, under autocast too.

        ``task_loss``: the mean over the batch of the student's own loss, whose gradient guides ``gkd_loss``.
        """
        self._require_gradients(student)
        labels = self.require_labels(batch)
        gradients = self._gradients(student, task_loss)
        device = next(iter(student.values())).device.type
        with torch.autocast(device, enabled=False):
            return {term.name: term.factor(step) * term(student, teachers[term.teacher], labels, gradients) for term in self.terms}

    @property
    def guided_layers(self) -> list[str]:
        """The layers of the student at which the gradient of the task loss is asked for."""
        guided = (term for term in self.terms if isinstance(term.loss, GKDLoss))
        return list(dict.fromkeys(pair.student for term in guided for pair in term.pairs))

    def _gradients(self, student: Tapped, task_loss: Tensor | None) -> dict[str, Tensor]:
        """The gradient of every image's task loss at each of ``guided_layers``; the graph stays for the backward pass."""
        layers = self.guided_layers
        if not layers or task_loss is None or not task_loss.requires_grad:
            return {}
        tensors = [student[layer] for layer in layers]
        of_images = task_loss * len(tensors[0])  # the loss is their mean
        found = torch.autograd.grad(of_images, tensors, retain_graph=True, allow_unused=True)
        for layer, gradient in zip(layers, found, strict=True):
            if gradient is None:
                raise UserError(
                    f"gkd_loss: the task loss does not depend on {layer!r} as it is read: a later layer changes it in place, or no "
                    "layer uses it. Name another layer of the student."
                )
        return dict(zip(layers, (gradient.detach() for gradient in found), strict=True))

    def require_labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The labels of a batch; None where no term needs them. Raises ``UserError`` where they are not one an image."""
        return labels_of(batch) if any(term.loss.needs_labels for term in self.terms) else None

    def layers_of_student(self) -> list[str]:
        """Every layer of the student that is tapped, once."""
        return list(dict.fromkeys(pair.student for term in self.terms for pair in term.pairs))

    def layers_of(self, teacher: str) -> list[str]:
        """Every layer of a teacher that is tapped, once."""
        return list(dict.fromkeys(pair.teacher for term in self.terms if term.teacher == teacher for pair in term.pairs))

    def compares_classes(self, teacher: str) -> bool:
        """Whether what is learned from a teacher are its scores of classes, and not features alone."""
        return any(term.loss.of_logits for term in self.terms if term.teacher == teacher)

    def build_adapters(self, student: Shapes, teachers: Mapping[str, Shapes]) -> dict[str, tuple[str, nn.Module]]:
        """Every adapter by its name, with the layer of the student that it reads."""
        return {
            name: (pair.student, adapter(pair.adapter, student[pair.student], teachers[term.teacher][pair.teacher]))
            for term in self.terms
            for name, pair in term.adapters()
            if pair.adapter is not None
        }

    def _require_gradients(self, student: Tapped) -> None:
        if not torch.is_grad_enabled():
            return
        for term in self.terms:
            for index, pair in enumerate(term.pairs):
                if not student[term.key(index)].requires_grad:
                    raise UserError(
                        f"mimic.{term.job}.student.mimic_name: no gradient passes through {pair.student!r}: everything up to "
                        "it is frozen, or recomputed by gradient checkpointing. Tap a layer that trains."
                    )


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """(B,) int64, one class an image: of a mixed batch the one that weighs most."""
    labels = batch.get("dominant", batch.get("gt"))
    if not isinstance(labels, Tensor):
        raise UserError("the mimic loss needs labels (gt), which this data does not have. Use kd_loss, which needs none.")
    if labels.is_floating_point() and labels.ndim == 2:
        return labels.argmax(1)
    if labels.ndim != 1:
        raise UserError(
            f"the mimic loss needs one label an image, this data has labels of shape {tuple(labels.shape)}. "
            "Use kd_loss, which needs none."
        )
    return labels


def _fix(student: Sequence[int], teacher: Sequence[int]) -> str:
    """What to do about features that cannot be compared; with the adapter that would help, if one would."""
    kinds: tuple[Kind, ...] = ("conv1x1", "linear")
    fitting = [kind for kind in kinds if adapter_refusal(kind, student, teacher) is None]
    adapted = f", or put an adapter between them (student: {{adapter: {fitting[0]}}})" if fitting else ""
    return f"name layers that fit{adapted}"


def _shape(shape: Sequence[int]) -> str:
    return f"(B, {', '.join(str(size) for size in shape[1:])})"


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
