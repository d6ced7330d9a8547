"""Everything that the loop holds while it runs, and what it does between updates: agree, evaluate, save, resume, end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from up.data.bad_images import BadImages
from up.data.loader import TrainLoader
from up.data.records import Batch
from up.distributed.failures import raise_together, together
from up.distributed.group import barrier, from_main, gather_objects, is_main, rank
from up.distributed.signals import StopRequest
from up.distributed.vote import Vote, agree, agree_on
from up.engine.buffers import RankBuffers
from up.engine.checkpoint import FORMAT_VERSION, CheckpointFolder, load_parts
from up.engine.clip import Clip
from up.engine.ema import Ema, NoEma
from up.engine.evaluate import BrokenOff, Evaluation
from up.engine.every import AnyOf, Every
from up.engine.faults import Fault
from up.engine.fingerprint import Facts
from up.engine.folder import State, Status, write_status
from up.engine.hooks import Hooks, Outline, UpdateReport
from up.engine.meter import StepMeter
from up.engine.precision import Precision, StepReport, is_finite, not_finite
from up.engine.shards import WholeOptimizer, WholeTensors, is_shared
from up.engine.step import Runner
from up.engine.updates import Update, as_updates
from up.errors import NumericalError, place_in
from up.files import BEST, LATEST
from up.models.weights import variant_of
from up.optim.schedules import Schedule
from up.text import some_of
from up.tracking.log import BAD_IMAGES, LOGGER, cut_after, list_bad_images


class Stateful(Protocol):
    """A part whose state a checkpoint carries."""

    def state_dict(self) -> Any:
        """Tensors and plain values."""

    def load_state_dict(self, state: Any) -> object:
        """The counterpart."""


@dataclass
class TrainingSession:
    """One training run, built and ready for the loop."""

    outline: Outline
    facts: Facts
    runner: Runner
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    clip: Clip
    ema: Ema | NoEma
    loader_from: Callable[[int], TrainLoader]  # by the first step
    evaluation: Evaluation | None
    evaluate_every: Every
    save_every: AnyOf
    checkpoints: CheckpointFolder
    resume_from: Path | None
    resume_state: Mapping[str, Any] | None  # what that checkpoint holds
    hooks: Hooks
    stop: StopRequest
    buffers: RankBuffers
    bad_images: BadImages
    fault: Fault = field(default_factory=Fault)
    meter: StepMeter = field(default_factory=StepMeter)
    best: dict[str, Any] = field(default_factory=dict)  # metric (its value), step and name
    metrics: dict[str, float] = field(default_factory=dict)
    improved: bool = False  # the last evaluation was the best so far, and is not saved yet
    owes_evaluation: bool = False  # a signal came during the one that is due at this step
    step: int = 0  # updates done
    saved_step: int | None = None  # the step of the newest checkpoint in the run folder, as far as this run knows
    update: Update | None = None  # the one in work
    stopped_by: str = ""  # why the run ended before its last step
    suspects: str = ""  # what was being trained on when the gradients stopped being finite

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.runner.model

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.outline.updates_per_epoch

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """The parts whose states make a run go on exactly."""
        shared = is_shared(self.model)
        return {
            "model": WholeTensors(self.model) if shared else self.model,
            "optimizer": WholeOptimizer(self.optimizer) if shared else self.optimizer,
            "ema": WholeTensors(self.ema) if shared else self.ema,
            "buffers": self.buffers,
            "precision": self.precision,
            "clip": self.clip,
            "schedule": self.schedule,
            "bad_images": self.bad_images,
            "hooks": self.hooks,
            "runner": self.runner,
        }

    def resume(self) -> int:
        """Restore the newest state there is and return the number of updates done, 0 for a fresh start."""
        if self.resume_from is not None and self.resume_state is not None:
            self._restore(self.resume_from, self.resume_state)
            self.resume_state = None  # it is as large as the run
        self._write_status(self._status("running"))
        if is_main():
            cut_after(self.outline.folder / BAD_IMAGES, self.step)
        self.hooks.on_start(self.outline, self.step)
        if self.owes_evaluation:
            self.evaluate(self.step)
            if self.owes_checkpoint(self.step):
                self.save(self.step)
        return self.step

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        is_own = path.parent.resolve() == self.checkpoints.folder.resolve()
        with together():
            load_parts(path, state, self.stateful)
            if is_own and is_main():
                self.checkpoints.renew_names({LATEST: state["step"], BEST: state["best"].get("step")})
        self.step, self.best, self.metrics = state["step"], dict(state["best"]), dict(state["metrics"])
        self.owes_evaluation = state["owes_evaluation"]
        self.saved_step = self.step if is_own else None
        LOGGER.info("resumed from %s at step %d", path, self.step)

    def updates(self, *, from_step: int) -> Iterator[Update]:
        """One entry an update: its micro-batches, or why there are none."""
        loader = self.loader_from(from_step)
        return as_updates(loader, loader.cut)

    def vote(self, update: Update) -> Vote:
        """What all ranks do with this update. Raises on every rank what one of them met in its data."""
        self.update = update
        self.fault.strike(self.step, "update")
        news = self.bad_images.new_in(update.batches)
        wanted = Vote.for_request(self.stop)
        verdict, is_news = agree_on(Vote.ERROR if update.failure and wanted is Vote.GO else wanted, bool(news))
        if is_news:
            self._note_bad_images([bad for told in gather_objects(news) for bad in told])
        if verdict is Vote.ERROR:
            raise_together(update.failure)
        return verdict

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """A micro-batch as the model takes it."""
        return self.fault.spoil(self.runner.prepare(batch, step, micro), step)

    def all_finite(self, norm: Tensor) -> bool:
        """Whether the gradients are finite; if not, no optimizer moves anywhere and the run ends.

        No vote is needed: the ranks have summed their gradients, and what is not finite on one of them is so on all.
        """
        if is_finite(norm):
            return True
        loss = self.meter.held("loss")
        names = [name for batch in self.update.batches for name in batch["filename"]] if self.update else []
        is_guilty = loss is not None and not is_finite(loss)
        parts = self.meter.parts_not_finite() if is_guilty else []
        where = f" (in {some_of(parts)})" if parts else ""
        mine = f"the loss of rank {rank()} is {loss}{where} on {some_of(names)}" if is_guilty else ""
        told = [text for text in gather_objects(mine) if text]
        self.suspects = "; ".join(told) or f"all losses are finite, rank 0 trains on {some_of(from_main(names))}"
        return False

    def watch(self, step: int, update: Update, lr: float, outcome: StepReport) -> None:
        """Tell the hooks about a finished update."""
        self.step = step
        scalars = {**self.meter.take(), "grad_norm": outcome.grad_norm}
        self.hooks.on_step(UpdateReport(step, lr, scalars, update.images_of_all_ranks, update.wait_s))

    def evaluate(self, step: int) -> None:
        """Measure the weights as they stand after ``step`` updates; a signal breaks it off, and a resumed run makes up for it."""
        if self.evaluation is None:
            return
        self.fault.strike(step, "evaluation")
        self.buffers.equalize()
        self.owes_evaluation = True
        try:
            self.metrics = self.evaluation(self.model, self.ema, lambda: Vote.for_request(self.stop))
        except BrokenOff:
            return
        self.owes_evaluation = False
        name, metric = self.main_metric(self.metrics)
        if name in self.metrics and not math.isfinite(metric):
            self.suspects = "its weights are not saved. Lower lr, or set trainer.clip_norm"
            raise NumericalError(f"the evaluation gave no finite score ({name} is {metric})")
        self.schedule.observe(step, metric)
        if metric > self.best.get("metric", float("-inf")):
            self.best, self.improved = {"metric": metric, "step": step, "name": name}, True
            self.hooks.on_best(step, name, metric)
        self.hooks.on_evaluation(step, self.metrics)

    def main_metric(self, metrics: Mapping[str, float]) -> tuple[str, float]:
        """Name and value of the number that decides which checkpoint is best: of the averaged weights where there are any."""
        if self.evaluation is None or not metrics:
            return "", float("nan")
        name = self.evaluation.served.main_metric
        name = f"ema_{name}" if f"ema_{name}" in metrics else name
        return name, metrics.get(name, float("nan"))

    def owes_checkpoint(self, step: int) -> bool:
        """Whether to save after ``step`` updates: by the timetable, or because the last evaluation was the best so far."""
        return self.save_every.is_due(step) or self.improved or self.hooks.wants_checkpoint

    def save(self, step: int) -> None:
        """Commit a checkpoint, and name it the best where it is. Raises ``StorageError`` on every rank if it cannot.

        Raises ``NumericalError`` instead of saving weights that are not finite: the last update may have made them so, and
        under fp16 the steps that are skipped then look like any that overflow.
        """
        broken = [name for name in gather_objects(not_finite(self.model)) if name]
        if broken:
            self.suspects = "it is not saved. Lower lr, or set trainer.clip_norm"
            raise NumericalError(f"{broken[0]} is not finite")
        self.fault.strike(step, "save")
        state = self._state(step)
        with together():
            if is_main():
                path = self.checkpoints.save(
                    state, step=step, epoch=self.epoch, whole_epoch=step % self.outline.updates_per_epoch == 0, metric=self.metrics
                )
                if self.improved:
                    self.checkpoints.mark_best(path)
                self.hooks.on_save(step, path)
                self.saved_step = step
                self._write_status(self._status("running"))
        self.improved, self.saved_step = False, step

    def finish(self, step: int, verdict: Vote) -> Vote:
        """The last save, where the loop has not made it, and the last word; returns why the run ended."""
        if self.owes_evaluation:
            verdict = agree(Vote.for_request(self.stop))
        if verdict is not Vote.GO and self.saved_step != step:
            self.save(step)
        state: State = "done" if verdict is Vote.GO else "preempted"
        reasons = [reason for reason in gather_objects(self.stop.reason) if reason] if state == "preempted" else []
        self.stopped_by = next(iter(reasons), "")
        self._write_status(self._status(state, exit_code=verdict.exit_code, reason=self.stopped_by))
        self.hooks.on_end(step, state)
        self.stop.over()  # a launcher that sees the first rank end signals the others
        barrier()
        return verdict

    def _note_bad_images(self, news: list[str]) -> None:
        """Count and list them, the same on every rank. Raises ``UserError`` when they are too many."""
        if is_main():
            list_bad_images(self.outline.folder, self.step, list(dict.fromkeys(news)))
        with together():
            self.bad_images.add({"bad": news})

    def _state(self, step: int) -> dict[str, Any]:
        facts = self.facts
        return {
            "format_version": FORMAT_VERSION,
            "step": step,
            "epoch": self.epoch,
            "best": self.best,
            "metrics": self.metrics,
            "owes_evaluation": self.owes_evaluation,
            "config": facts.config,
            "data_sha256": facts.data_sha256,
            "seed": facts.seed,
            "global_batch_size": facts.global_batch_size,
            "class_names": facts.class_names,
            "variant": variant_of(self.model),
            **{name: part.state_dict() for name, part in self.stateful.items()},
        }

    def _status(self, state: State, *, exit_code: int | None = None, reason: str = "") -> Status:
        latest = self.checkpoints.folder / LATEST
        checkpoint = self.resume_from if self.saved_step is None else latest
        shown = None if checkpoint is None else str(checkpoint)
        file, line = place_in(reason)
        return Status(state, exit_code, self.step, self.epoch, shown, reason, file, line)

    def _write_status(self, status: Status) -> None:
        if is_main():
            write_status(self.outline.folder, status)
