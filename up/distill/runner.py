"""The runner of distillation: a batch becomes the task's loss and the losses of the distillation terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import nn
from torch.optim import Optimizer

from up.config.argument import FromProgram
from up.data.records import Batch
from up.distill.cache import CachedTeacher, image_keys
from up.distill.teachers import Teacher, unlabelled
from up.distill.terms import ACTIVATIONS, DistillationTerms, HookedStudent
from up.distributed.group import rank
from up.engine.step import Mean, Runner, StepOutput
from up.errors import UserError
from up.types import Argument, StateDict


class KDRunner(Runner):
    """Train a student with one or more frozen teachers; only the loss differs from training without them.

    ``net`` is a ``HookedStudent``, or its distributed wrapper; ``model`` is the student alone: evaluation, average and export
    have no teachers and adapters. ``state_dict`` has the adapters, which train with the student, and digests of the teachers'
    weights: a run resumes with the same teachers, even if their files were moved.
    """

    def __init__(
        self,
        net: Annotated[nn.Module, FromProgram()],
        *,
        terms: Annotated[DistillationTerms, FromProgram()],
        teachers: Annotated[Sequence[Teacher | CachedTeacher], FromProgram()],
        labelled: Annotated[bool, FromProgram()] = True,
        **kwargs: Argument,
    ) -> None:
        super().__init__(net, **kwargs)
        self.terms = terms
        self.teachers = teachers
        self.labelled = labelled

    @property
    def hooked(self) -> HookedStudent:
        """The student with its adapters."""
        hooked = super().model
        assert isinstance(hooked, HookedStudent)
        return hooked

    @property
    def model(self) -> nn.Module:
        """The student."""
        return self.hooked.student

    @property
    def loss_names(self) -> Sequence[str]:
        """The scalars of a step that add up to the loss."""
        return [*(["task_loss"] if self.labelled else []), *(term.name for term in self.terms.terms)]

    def add_parameters_to(self, optimizer: Optimizer) -> None:
        """Train the adapters with the optimizer's own settings: no rule of ``pconfig`` applies to them."""
        parameters = list(self.hooked.adapters.parameters())
        if parameters:
            lr = optimizer.defaults["lr"]
            optimizer.add_param_group({"params": parameters, "lr": lr, "lr_scale": 1.0, "rule": "mimic adapters"})

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """Prepare a batch, and add the keys of its images and its step for a cache of teacher outputs."""
        keys = image_keys(batch, (self.seed, step, micro, rank()) if self.mix is not None else None)
        return Batch(super().prepare(batch, step, micro), image_keys=keys, training_step=step)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Add ``task_loss``, if there are labels, and the loss of every term; each is a scalar of the output too."""
        teachers = {teacher.name: teacher(batch) for teacher in self.teachers}
        if not self.labelled:
            record = self.net(unlabelled(batch))
            losses = self.terms(record[ACTIVATIONS], teachers, batch, step)
            return StepOutput(torch.stack(list(losses.values())).sum(), losses, record)
        own = super().training_step(batch, step)
        losses = self.terms(own.outputs[ACTIVATIONS], teachers, batch, step, own.loss)
        parts = [*([own.loss] if self.terms.task_loss else []), *losses.values()]
        shown = {**own.scalars, "task_loss": own.loss, **losses}
        terms = dict(own.terms)
        if self.terms.task_loss and (own.weight is not None or terms):
            terms.update({name: Mean(loss) for name, loss in losses.items()})  # means over images, unlike the task's loss
        return StepOutput(sum(parts[1:], parts[0]), shown, own.outputs, own.weight if self.terms.task_loss else None, terms)

    def state_dict(self) -> StateDict:
        """Return the adapters' weights, and digests of the teachers'."""
        return {"adapters": self.hooked.adapters.state_dict(), "teachers": self._digests()}

    def load_state_dict(self, state: Mapping[str, StateDict]) -> None:
        """Load the adapters. Raises ``UserError`` if a teacher's weights changed."""
        for name, now in self._digests().items():
            then = state["teachers"].get(name)
            if then != now:
                raise UserError(f"{name} has other weights now (sha256 {then} then, {now} now): name the file that it had")
        self.hooked.adapters.load_state_dict(state["adapters"])

    def _digests(self) -> dict[str, str]:
        return {teacher.name: teacher.digest()[:16] for teacher in self.teachers}
