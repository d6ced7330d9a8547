"""Distillation: a batch becomes the task's loss and what the student still lacks of its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import nn

from up.config.argument import FromProgram
from up.data.records import Batch
from up.distill.cache import visits_of
from up.distill.mimic import TAPS, HookedStudent, Mimic
from up.distill.teachers import Taught
from up.distributed.group import rank
from up.engine.step import BatchStage, LossOf, Mean, Mixing, Runner, StepOutput
from up.errors import UserError


class KDRunner(Runner):
    """Trains a student that mimics one or more frozen teachers; all but the loss is as without them.

    ``net`` is a ``HookedStudent``, perhaps wrapped for many ranks; ``model`` the student alone, so that teachers and adapters are
    in no evaluation, average or export. ``state_dict`` has the adapters, which train with the student, and by what weights
    it was taught: a run goes on with the same teachers, wherever their files are by then.
    """

    def __init__(
        self,
        net: Annotated[nn.Module, FromProgram()],
        *,
        loss_of: Annotated[LossOf, FromProgram()],
        stage: Annotated[BatchStage, FromProgram()],
        mix: Annotated[Mixing | None, FromProgram()],
        seed: Annotated[int, FromProgram()],
        mimic: Annotated[Mimic, FromProgram()],
        teachers: Annotated[Sequence[Taught], FromProgram()],
    ) -> None:
        super().__init__(net, loss_of=loss_of, stage=stage, mix=mix, seed=seed)
        self.mimic = mimic
        self.teachers = teachers

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

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """As without teachers; the batch also says what its images are, for a cache of what teachers said of them."""
        visits = visits_of(batch, step, (self.seed, step, micro, rank()) if self.mix is not None else None)
        return Batch(super().prepare(batch, step, micro), visits=visits)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """The sum of ``task_loss`` and every mimic loss, each of them shown apart."""
        taught = {teacher.name: teacher(batch) for teacher in self.teachers}
        own = super().training_step(batch, step)
        losses = self.mimic(own.outputs[TAPS], taught, batch, step, own.loss)
        parts = [*([own.loss] if self.mimic.task_loss else []), *losses.values()]
        shown = {**own.scalars, "task_loss": own.loss, **losses}
        terms = dict(own.terms)
        if self.mimic.task_loss and (own.weight is not None or terms):
            terms.update({name: Mean(loss) for name, loss in losses.items()})  # means over images, whatever the task's loss is of
        return StepOutput(sum(parts[1:], parts[0]), shown, own.outputs, own.weight if self.mimic.task_loss else None, terms)

    def state_dict(self) -> dict[str, Any]:
        """The adapters' weights, and digests of the teachers'."""
        return {"adapters": self.hooked.adapters.state_dict(), "teachers": self._digests()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counterpart of ``state_dict``. Raises ``UserError`` for teachers with other weights."""
        for name, now in self._digests().items():
            then = state["teachers"].get(name)
            if then != now:
                raise UserError(f"{name} has other weights now (sha256 {then} then, {now} now): name the file that it had")
        self.hooked.adapters.load_state_dict(state["adapters"])

    def _digests(self) -> dict[str, str]:
        return {teacher.name: teacher.digest()[:16] for teacher in self.teachers}
