"""The state of a training run, and its actions between steps: vote, evaluate, save, resume, finish."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from up.data.collate import rows_of
from up.data.records import Batch, image_count
from up.data.sampler import Share
from up.distributed.failures import Vote, agree_on, on_all_ranks, raise_on_all_ranks
from up.distributed.group import barrier, from_main, gather_objects, is_main, rank
from up.distributed.signals import StopRequest
from up.engine.bad_images import BadImageLog
from up.engine.checkpoint import FORMAT_VERSION, CheckpointFolder, Stateful, load_parts
from up.engine.clip import Clip
from up.engine.ema import Ema, NoEma
from up.engine.evaluate import Evaluation, EvaluationInterrupted, Evaluator
from up.engine.faults import Fault
from up.engine.fingerprint import RunFingerprint
from up.engine.folder import State, Status, write_status
from up.engine.hooks import Findings, Hooks, Outline, StepReport
from up.engine.memory import Memory, MicroBatch
from up.engine.meter import StepMeter
from up.engine.parallel import RankBuffers
from up.engine.precision import Precision, is_finite, not_finite
from up.engine.shards import WholeState, is_shared
from up.engine.step import Runner, StepData, StepLoader, data_of_steps
from up.engine.stopping import EarlyStopping
from up.engine.timetable import AnyOf, Every
from up.errors import NumericalError
from up.files import LATEST
from up.intervals import Interval
from up.models.weights import variant_of
from up.optim.freezing import Freezing
from up.optim.schedules import Schedule
from up.text import count, some_of
from up.tracking.log import LOGGER
from up.types import Record, StateDict


@dataclass(frozen=True)
class Checkpointing:
    """Folder of the checkpoints, the steps after which they are due, the checkpoint that the run resumed from, and which is best.

    The best evaluation is the latest whose metric is at most ``best_within`` standard errors below the highest: the rule of one
    standard error (Breiman et al. 1984, §3.4.3) with ``best_within`` 1.
    """

    folder: CheckpointFolder
    due: AnyOf
    resumed_from: Path | None = None
    best_within: float = 0.0

    def is_best(self, metric: float, interval: Interval | None, highest: float) -> bool:
        """Check whether an evaluation is the best so far, ``highest`` the largest metric before it."""
        tie = self.best_within * interval.standard_error if interval is not None else 0.0
        return metric > highest or (tie > 0 and metric >= highest - tie)


@dataclass
class Progress:
    """The part of a session that changes while it trains."""

    step: int = 0  # optimizer steps done
    best: dict[str, object] = field(default_factory=dict)  # value (as ``metric``), step, name and interval of the best evaluation
    metrics: dict[str, float] = field(default_factory=dict)
    improved: bool = False  # the last evaluation was the best so far, and is not saved yet
    score: tuple[int, float] | None = None  # step and main metric of the last evaluation
    scores: dict[int, float] = field(default_factory=dict)  # the same of the evaluations whose checkpoints are kept as the best
    owes_evaluation: bool = False  # a signal interrupted the evaluation of this step
    saved_step: int | None = None  # of the newest checkpoint in the run folder that this run wrote or resumed from
    data: StepData | None = None  # of the current step
    stopped_by: str = ""  # reason of an early end
    has_shown: bool = False  # the hooks have seen the first batch

    @property
    def highest(self) -> float:
        """The largest main metric so far, which may be that of an earlier evaluation than the best one."""
        value = self.best.get("highest", self.best.get("metric"))
        return float(value) if isinstance(value, (int, float)) else -math.inf


@dataclass(frozen=True)
class TrainingSession:
    """A training run, built and ready for the loop. Only its ``progress`` changes."""

    outline: Outline
    fingerprint: RunFingerprint
    runner: Runner
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    clip: Clip
    ema: Ema | NoEma
    buffers: RankBuffers
    memory: Memory
    loader_from: Callable[[int], StepLoader]  # argument: the first step
    evaluation: Evaluation | None
    evaluate_every: Every
    checkpointing: Checkpointing
    bad_images: BadImageLog
    hooks: Hooks
    stop: StopRequest
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    stop_step: int | None = None  # an early stop that the configuration asks for
    freezing: Freezing | None = None
    fault: Fault = field(default_factory=Fault)
    report_every: int = 1  # steps between two reports of the hooks
    preprocessing: Record | None = None  # of evaluated images, for checkpoints; None where it is not known
    meter: StepMeter = field(default_factory=StepMeter)
    findings: Callable[[Evaluator], Findings] | None = None  # of an evaluation, beside its metrics
    average: Callable[[TrainingSession], None] = lambda session: None  # the weights of the checkpoints, after the last step
    progress: Progress = field(default_factory=Progress)

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.runner.model

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.progress.step // self.outline.steps_per_epoch

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """The parts whose states make a run continue exactly."""
        tensors: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}
        if is_shared(self.model):
            tensors = {name: WholeState(part) for name, part in tensors.items()}
        return {
            **tensors,
            "buffers": self.buffers,
            "precision": self.precision,
            "clip": self.clip,
            "schedule": self.schedule,
            "bad_images": self.bad_images.counted,
            "hooks": self.hooks,
            "runner": self.runner,
            "early_stopping": self.stopping,
            "memory": self.memory,
        }

    def restore(self, path: Path, state: StateDict, *, is_own: bool) -> None:
        """Restore the checkpoint ``state`` read from ``path``; ``is_own`` if it is in this run folder.

        Writes nothing. Raises ``CheckpointError`` for the state of another network.
        """
        load_parts(path, state, self.stateful)
        progress = self.progress
        progress.step, progress.best, progress.metrics = state["step"], dict(state["best"]), dict(state["metrics"])
        progress.owes_evaluation, progress.scores = state["owes_evaluation"], dict(state.get("scores", {}))
        progress.saved_step = progress.step if is_own else None

    def resume(self) -> int:
        """Start training, with the interrupted evaluation if there is one, and return the number of steps done."""
        step = self.progress.step
        self.report("running")
        if is_main():
            self.bad_images.drop_after(step)
        self.hooks.each(lambda hook: hook.on_start(self.outline, step))
        if self.progress.owes_evaluation:
            self.evaluate(step)
            if self.owes_checkpoint(step):
                self.save(step)
        return step

    def steps(self, *, from_step: int) -> Iterator[StepData]:
        """Yield the micro-batches of each step up to the last or to early stopping, or the failure to read them."""
        for data in () if self.stopping.is_over else data_of_steps(self.loader_from(from_step)):
            yield data
            if self.stopping.is_over:
                return

    def vote(self, data: StepData) -> Vote:
        """Agree with all ranks what to do in this step. Raises on every rank the failure of any rank to read its data."""
        self.progress.data = data
        self.fault.strike(self.progress.step, "update")
        if self.stop_step is not None and self.progress.step >= self.stop_step:
            self.stop.ask_because("stopped by trainer.stop_epoch")
        news = self.bad_images.counted.new_in(data.batches)
        wanted = Vote.for_request(self.stop)
        verdict, is_news = agree_on(Vote.ERROR if data.failure and wanted is Vote.GO else wanted, bool(news))
        if is_news:
            self.bad_images.note(self.progress.step, news)
        if verdict is Vote.ERROR:
            raise_on_all_ranks(data.failure)
        return verdict

    def freeze(self, step: int) -> None:
        """Freeze the parameters that do not train at ``step``."""
        if self.freezing is not None:
            self.freezing.apply(step)

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """Prepare a micro-batch for the model."""
        return self.fault.spoil(self.runner.prepare(batch, step, micro), step)

    def parts(self, data: StepData, step: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches of a step, prepared, and cut into smaller ones where memory does not hold them whole."""
        self.memory.begin(step)
        for micro, batch in enumerate(data.batches):
            whole, share = self.prepare(batch, step, micro), data.cut.shares[micro]
            self._show_first(step, whole)
            cut, is_last = self.memory.cut(image_count(whole)), micro == data.last
            if len(cut) == 1:
                yield MicroBatch(whole, share, is_last)
                continue
            for number, rows in enumerate(cut):
                if number:
                    self.runner.reseed(step, micro, number)
                images = share.row * (rows.stop - rows.start)
                yield MicroBatch(rows_of(whole, rows), Share(images, share.row), is_last and number == len(cut) - 1)

    def _show_first(self, step: int, batch: Batch) -> None:
        if not self.progress.has_shown:
            self.progress.has_shown = True
            self.hooks.each(lambda hook: hook.on_first_batch(step, batch))

    def split(self, data: StepData, step: int) -> None:
        """Drop the gradients of an attempt that ran out of memory, and allow half as many images at once from here on."""
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.reset()
        before = self.memory.halve(max(map(image_count, data.batches)))
        if is_main():
            LOGGER.warning(
                "out of memory at step %d with %d images in a micro-batch: the step is repeated and the run continues with %s; %s. "
                "To choose it yourself, lower batch_size and raise trainer.accumulate.",
                step,
                before,
                count(self.memory.images or 0, "image"),
                self.memory.differences(before),
            )
        self.report("running")
        self.hooks.each(lambda hook: hook.on_out_of_memory(step, self.memory.images or 0))

    def blame(self) -> Callable[[], str]:
        """Return a function, a collective operation, that names each rank whose loss in this step is not finite and its images."""
        sums, data = self.meter.sums, self.progress.data
        listed = [batch["filename"] for batch in data.batches] if data else []

        def blamed() -> str:
            names = [name for of_batch in listed for name in of_batch]
            mine, loss = "", sums.get("loss")
            if loss is not None and not is_finite(loss):
                parts = [name for name, value in sums.items() if name != "loss" and not value.isfinite().all()]
                mine = f"the loss of rank {rank()} is {loss}{f' (in {some_of(parts)})' if parts else ''} on {some_of(names)}"
            found = [text for text in gather_objects(mine) if text]
            return "; ".join(found) or f"all losses are finite, rank 0 trains on {some_of(from_main(names))}"

        return blamed

    def watch(self, step: int, data: StepData, lr: float, grad_norm: Tensor) -> None:
        """Report a finished step to the hooks."""
        self.progress.step = step
        if step % self.report_every == 0 or step == self.outline.total_steps:
            self.precision.settle()  # numbers of a step that failed are not shown
        scalars = {**self.meter.take(), "grad_norm": grad_norm}
        report = StepReport(step, lr, scalars, data.cut.images, data.wait_s)
        self.hooks.on_step(report)

    def evaluate(self, step: int) -> None:
        """Evaluate the weights after ``step`` steps; a signal interrupts it, and the resumed run repeats it."""
        if self.evaluation is None:
            return
        self.precision.settle()
        progress = self.progress
        self.fault.strike(step, "evaluation")
        self.buffers.equalize()
        progress.owes_evaluation = True
        try:
            metrics, served, intervals = self.evaluation(self.model, self.ema, lambda: Vote.for_request(self.stop))
        except EvaluationInterrupted:
            return
        progress.owes_evaluation, progress.metrics = False, metrics
        averaged = f"ema_{served.main_metric}"
        name = averaged if averaged in metrics else served.main_metric
        metric = metrics.get(name, math.nan)
        if name in metrics and not math.isfinite(metric):
            raise NumericalError(f"the evaluation gave {name} {metric}, expected a finite number; its weights are not saved")
        self.schedule.observe(step, metric)
        self.stopping.observe(step, from_main(metrics), name)
        if math.isfinite(metric):
            keeping, scores = self.checkpointing.folder.keeping, {**progress.scores, step: metric}
            progress.scores, progress.score = {at: scores[at] for at in (keeping.top(scores) if keeping else ())}, (step, metric)
        highest = progress.highest
        if self.checkpointing.is_best(metric, intervals.get(name), highest):
            further: Record = {"interval": list(intervals[name])} if name in intervals else {}
            further |= {"highest": highest} if highest > metric else {}
            progress.best, progress.improved = {"metric": metric, "step": step, "name": name, **further}, True
            self.hooks.each(lambda hook: hook.on_best(step, name, metric))
        self.hooks.each(lambda hook: hook.on_intervals(step, intervals))
        if self.findings is not None:
            found = self.findings(served)
            self.hooks.each(lambda hook: hook.on_findings(step, found))
        self.hooks.each(lambda hook: hook.on_evaluation(step, metrics))

    def owes_checkpoint(self, step: int) -> bool:
        """Check whether to save after ``step`` steps: by the timetable, for its evaluation, or because it is the last."""
        progress = self.progress
        is_good = progress.improved or step in progress.scores
        return self.checkpointing.due.is_due(step) or is_good or self.stopping.is_over or self.hooks.wants_checkpoint

    def save(self, step: int, *, is_stop: bool = False) -> None:
        """Commit a checkpoint, and mark it if it is the best; ``is_stop``: it is written only because a signal stops the run.

        Raises ``StorageError`` on every rank on failure.

        Raises ``NumericalError`` instead of saving weights that are not finite: the last step may have made them so, and
        under fp16 the steps skipped from then on look like any other overflow.
        """
        self.precision.settle()
        broken = [name for name in gather_objects(not_finite(self.model)) if name]
        if broken:
            raise NumericalError(f"{broken[0]} is not finite; it is not saved")
        self.fault.strike(step, "save")
        state, progress, folder = self._state(step), self.progress, self.checkpointing.folder
        with on_all_ranks():
            if is_main():
                whole_epoch = step % self.outline.steps_per_epoch == 0
                metrics, score = progress.metrics, progress.score[1] if progress.score and progress.score[0] == step else None
                path = folder.save(
                    state, step=step, epoch=self.epoch, whole_epoch=whole_epoch, metric=metrics, score=score, is_stop=is_stop
                )
                if progress.improved:
                    folder.mark_best(path)
                self.hooks.each(lambda hook: hook.on_save(step, path))
                progress.saved_step = step
                self.report("running")
        progress.improved, progress.saved_step = False, step

    def finish(self, step: int, verdict: Vote) -> Vote:
        """Save if the loop has not, average the weights if asked for, report the end, and return why the run ended."""
        self.precision.settle()
        progress = self.progress
        if progress.owes_evaluation:
            verdict, _ = agree_on(Vote.for_request(self.stop), False)
        if (verdict is not Vote.GO or self.stopping.is_over) and progress.saved_step != step:
            self.save(step, is_stop=verdict is not Vote.GO)
        if verdict is Vote.GO:
            try:
                self.average(self)
            except EvaluationInterrupted:
                verdict, _ = agree_on(Vote.for_request(self.stop), False)
        state: State = "done" if verdict is Vote.GO else "preempted"
        reasons = [reason for reason in gather_objects(self.stop.reason) if reason] if state == "preempted" else []
        early = self.stopping.reason if step < self.outline.total_steps else ""
        progress.stopped_by = next(iter(reasons), early)
        self.report(state, exit_code=verdict.exit_code, reason=progress.stopped_by)
        self.hooks.each(lambda hook: hook.on_end(step, state))
        self.stop.over()  # a launcher that sees the first rank end signals the others
        barrier()
        return verdict

    def report(self, state: State, *, exit_code: int | None = None, reason: str = "") -> None:
        """Write ``status.json``, on the main rank."""
        if is_main():
            progress, latest = self.progress, self.checkpointing.folder.folder / LATEST
            found = self.checkpointing.resumed_from if progress.saved_step is None else latest
            checkpoint = None if found is None else str(found)
            write_status(
                self.outline.folder,
                Status(state, exit_code, progress.step, self.epoch, checkpoint, reason, images_at_once=self.memory.images),
            )

    def _state(self, step: int) -> Record:
        fingerprint, progress = self.fingerprint, self.progress
        return {
            "format_version": FORMAT_VERSION,
            "step": step,
            "epoch": self.epoch,
            "best": progress.best,
            "metrics": progress.metrics,
            "scores": progress.scores,
            "owes_evaluation": progress.owes_evaluation,
            "config": fingerprint.config,
            "data_sha256": fingerprint.data_sha256,
            "seed": fingerprint.seed,
            "global_batch_size": fingerprint.global_batch_size,
            "class_names": fingerprint.class_names,
            "variant": variant_of(self.model),
            "preprocessing": self.preprocessing,
            **{name: part.state_dict() for name, part in self.stateful.items()},
        }
