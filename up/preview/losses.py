"""The loss of a past step, computed again: on each rank's batch in turn, with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from up.build.parts import RunParts
from up.build.trial import trial_session
from up.data.records import Batch, image_count
from up.distributed.env import as_rank
from up.engine.checkpoint import CheckpointFolder, load_checkpoint, load_parts
from up.engine.memory import Memory, MicroBatch
from up.engine.meter import StepMeter, over_weights
from up.engine.parallel import unchanged_buffers
from up.engine.session import TrainingSession
from up.errors import UserError
from up.preview.batch import RankData, data_of_rank, stage_of
from up.tasks.experiment import Experiment
from up.types import StateDict

_RESTORED = ("model", "runner", "schedule", "memory")  # what the loss of a step depends on


class StartWeights(NamedTuple):
    """Weights at the start of a step: a checkpoint and the steps it had done, or the first weights of the run."""

    path: Path | None
    step: int
    state: StateDict | None


class ReplayedBatch(NamedTuple):
    """A micro-batch of a rank as the net got it, and the loss of each of its samples, None if it is not known."""

    own: RankData
    micro: int
    batch: Batch
    losses: list[float | None]


def start_of(run: Path, step: int, named: Path | None) -> StartWeights:
    """Return the checkpoint with the weights nearest before ``step`` (from 1), or the ``named`` one. Raises ``CheckpointError``."""
    if named is not None:
        state = load_checkpoint(named)
        return StartWeights(named, state["step"], state)
    folder = CheckpointFolder(run, keeping=None, config_sha256="")
    before = [(path, done) for path, done in folder.steps() if done < step]
    if not before:
        return StartWeights(None, 0, None)
    path, done = before[-1]
    return StartWeights(path, done, load_checkpoint(path))


def session_at(experiment: Experiment, start: StartWeights, step: int, ranks: int) -> tuple[RunParts, TrainingSession]:
    """Build the session of a run with the weights of ``start``, for ``step`` (from 1)."""
    with as_rank(0, ranks):
        parts, session = trial_session(experiment, steps=step, weights=start.path is None)
    if parts.search is not None:
        raise UserError("the run searches for an architecture, whose weights change beside the loss", fix="Replay an ordinary run.")
    session = replace(session, memory=Memory(session.runner.net))
    session.runner.stage = stage_of(parts, step - 1)
    if start.path is not None and start.state is not None:
        parts.freezing.apply(max(0, start.step - 1))  # the buffers of a checkpoint are those that trained
        found = {name: session.stateful[name] for name in _RESTORED if name in start.state}
        load_parts(start.path, start.state, found)
    session.freeze(step - 1)
    return parts, session


@dataclass
class ReplayedStep:
    """A step (from 1) that is computed again, rank after rank, as in training; the weights do not change."""

    experiment: Experiment
    parts: RunParts
    session: TrainingSession
    step: int
    ranks: int
    _sums: list[Mapping[str, Tensor]] = field(default_factory=list)  # of each rank

    def batches(self) -> Iterator[ReplayedBatch]:
        """Yield the micro-batches of all ranks, each with the losses of its samples."""
        for rank in range(self.ranks):
            own = data_of_rank(self.experiment, self.parts, self.step - 1, rank, self.ranks)
            meter = StepMeter()
            with as_rank(rank, self.ranks), unchanged_buffers(self.session.model):
                found = [self._prepared(own, micro) for micro in range(len(own.data.batches))]
                micro = first = 0
                for part in self.session.parts(own.data, self.step - 1):
                    self._add(part, found[micro], first, meter)
                    first += image_count(part.batch)
                    if first >= image_count(found[micro].batch):
                        micro, first = micro + 1, 0
            self._sums.append(meter.weighed_sums(of_ranks=self.ranks > 1))
            yield from found

    def scalars(self) -> dict[str, float]:
        """Return the scalars of the step over all ranks, once ``batches`` is through."""
        means = {name: sum(each[name] for each in self._sums) / self.ranks for name in self._sums[0]}
        return {name: float(mean) for name, mean in over_weights(means).items()}  # type: ignore[arg-type]

    def _prepared(self, own: RankData, micro: int) -> ReplayedBatch:
        batch = self.session.prepare(own.data.batches[micro], self.step - 1, micro)
        return ReplayedBatch(own, micro, batch, [None] * len(own.keys[micro]))

    def _add(self, part: MicroBatch, whole: ReplayedBatch, first: int, meter: StepMeter) -> None:
        """Pass the part of a micro-batch from row ``first`` on through the net; add its loss and those of its samples."""
        session = self.session
        with session.precision.autocast():
            output = session.runner.training_step(part.batch, self.step - 1)
        meter.weigh(output, part.share)
        end = first + image_count(part.batch)
        inside = {
            sample: slice(rows.start - first, rows.stop - first)
            for sample, rows in enumerate(whole.own.rows(whole.micro))
            if first <= rows.start and rows.stop <= end
        }
        with torch.no_grad(), unchanged_buffers(session.model), session.precision.autocast():
            losses = self.experiment.task.image_losses(session.model, part.batch, output.outputs, list(inside.values()))
        for sample, loss in zip(inside, losses or [], strict=False):
            whole.losses[sample] = loss
