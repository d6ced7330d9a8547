"""Everything that the loop holds while it runs, and what it does between updates: agree, evaluate, save, resume, end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from up.data.loader import TrainLoader
from up.distributed import from_main, is_main, max_over_ranks
from up.errors import StorageError, UserError
from up.optim.schedules import Schedule
from up.runner.checkpoint import FORMAT_VERSION, CheckpointFolder, load_checkpoint
from up.runner.clip import Clip
from up.runner.ema import Ema, NoEma
from up.runner.evaluate import Evaluation
from up.runner.every import Every
from up.runner.folder import Status, write_status
from up.runner.hooks import Hooks, Outline, UpdateReport
from up.runner.log import LOGGER
from up.runner.meter import StepMeter
from up.runner.precision import Precision, StepReport
from up.runner.runner import Runner
from up.runner.stop import StopRequest
from up.runner.updates import Update, as_updates
from up.runner.vote import Vote, agree


class Stateful(Protocol):
    """A part whose state a checkpoint carries."""

    def state_dict(self) -> Any:
        """Tensors and plain values."""

    def load_state_dict(self, state: Any) -> object:
        """The counterpart."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of the run that wrote it, and what must not change under a resume."""

    config: str  # the effective YAML
    data_sha256: str
    seed: int
    global_batch_size: int
    class_names: list[str] | None
    accept_data_change: bool = False


@dataclass
class Run:
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
    save_every: Every
    checkpoints: CheckpointFolder
    resume_from: Path | None
    hooks: Hooks
    stop: StopRequest
    meter: StepMeter = field(default_factory=StepMeter)
    best: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    improved: bool = False  # the last evaluation was the best so far, and is not saved yet
    step: int = 0  # updates done

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.runner.model

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """The parts whose states make a run go on exactly."""
        return {
            "model": self.model, "optimizer": self.optimizer, "ema": self.ema, "precision": self.precision, "clip": self.clip,
            "schedule": self.schedule,
        }  # fmt: skip

    def resume(self) -> int:
        """Restore the newest state there is and return the number of updates done, 0 for a fresh start."""
        path, step = self.resume_from, 0
        if path is not None:
            state = load_checkpoint(path)
            self._require_same_run(path, state)
            for name, part in self.stateful.items():
                part.load_state_dict(state[name])
            step, self.best, self.metrics = state["step"], dict(state["best"]), dict(state["metrics"])
            LOGGER.info("resumed from %s at step %d", path, step)
        self._write_status(Status("running", step=step, epoch=self._epoch(step), checkpoint=str(path) if path else None))
        self.hooks.on_start(self.outline, step)
        return step

    def updates(self, *, from_step: int) -> Iterator[Update]:
        """One entry an update: its micro-batches, or why there are none."""
        return as_updates(self.loader_from(from_step))

    def vote(self, update: Update) -> Vote:
        """What all ranks do with this update. Raises what the failed rank met, on that rank."""
        proposal = Vote.ERROR if update.failure else Vote.STOP if self.stop else Vote.GO
        verdict = agree(proposal)
        if verdict is Vote.ERROR:
            raise update.failure or UserError("another rank could not read its batch; its own message says why.")
        return verdict

    def all_finite(self, norm: Tensor) -> bool:
        """Whether the gradients of all ranks are finite; if not, no optimizer moves anywhere and the run ends."""
        return max_over_ranks(int(not bool(torch.isfinite(norm)))) == 0

    def watch(self, step: int, update: Update, lr: float, outcome: StepReport) -> None:
        """Tell the hooks about a finished update."""
        self.step = step
        scalars = {**self.meter.take(), "grad_norm": outcome.grad_norm}
        self.hooks.on_step(UpdateReport(step, lr, scalars, update.images_of_all_ranks, update.wait_s))

    def evaluate(self, step: int) -> None:
        """Measure the weights as they stand after ``step`` updates."""
        if self.evaluation is None:
            return
        self.metrics = self.evaluation(self.model, self.ema)
        metric = self.main_metric(self.metrics)
        self.schedule.observe(step, metric)
        if metric > self.best.get("metric", float("-inf")):
            self.best, self.improved = {"metric": metric, "step": step}, True
        self.hooks.on_evaluation(step, self.metrics)

    def main_metric(self, metrics: Mapping[str, float]) -> float:
        """The number that decides which checkpoint is best: of the averaged weights where there are any."""
        if self.evaluation is None or not metrics:
            return float("nan")
        name = self.evaluation.served.main_metric
        return metrics.get(f"ema_{name}", metrics.get(name, float("nan")))

    def save(self, step: int) -> None:
        """Commit a checkpoint, and name it the best where it is. Raises ``StorageError`` on every rank if it cannot."""
        state = self._state(step)
        problem = ""
        if is_main():
            try:
                path = self.checkpoints.save(
                    state,
                    step=step,
                    epoch=self._epoch(step),
                    whole_epoch=step % self.outline.updates_per_epoch == 0,
                    metric=self.metrics,
                )
                if self.improved:
                    self.checkpoints.mark_best(path)
                self.hooks.on_save(step, path)
            except StorageError as error:
                problem = str(error)
        self.improved = False
        problem = from_main(problem)
        if problem:
            raise StorageError(problem)

    def finish(self, step: int, verdict: Vote) -> None:
        """The last save, where the loop has not made it, and the last word."""
        if verdict is Vote.STOP and not self.save_every.is_due(step):
            self.save(step)
        reason: Any = "done" if verdict is Vote.GO else "preempted"
        code = 0 if verdict is Vote.GO else self.stop.exit_code
        self._write_status(
            Status(
                reason,
                exit_code=code,
                step=step,
                epoch=self._epoch(step),
                checkpoint=str(self.checkpoints.folder / "ckpt_latest.pth"),
            )
        )
        self.hooks.on_end(step, reason)

    def _state(self, step: int) -> dict[str, Any]:
        facts = self.facts
        return {
            "format_version": FORMAT_VERSION, "step": step, "epoch": self._epoch(step), "best": self.best, "metrics": self.metrics,
            "config": facts.config, "data_sha256": facts.data_sha256, "seed": facts.seed,
            "global_batch_size": facts.global_batch_size, "class_names": facts.class_names,
            **{name: part.state_dict() for name, part in self.stateful.items()},
        }  # fmt: skip

    def _require_same_run(self, path: Path, state: Mapping[str, Any]) -> None:
        """A resume goes on with the same data, seed and batches, or not at all."""
        if state["data_sha256"] != self.facts.data_sha256 and not self.facts.accept_data_change:
            raise UserError(
                f"{path}: the training data have changed since this checkpoint (sha256 {state['data_sha256'][:12]}… then, "
                f"{self.facts.data_sha256[:12]}… now). Restore them, or go on with saver.accept_data_change=true."
            )
        for key, now in (("seed", self.facts.seed), ("global_batch_size", self.facts.global_batch_size)):
            if state[key] != now:
                raise UserError(
                    f"{path}: was made with {key} {state[key]}, this run has {now}; the images would come in another order. "
                    "Restore it, or start from the weights alone with saver.pretrain_model."
                )

    def _epoch(self, step: int) -> int:
        return step // self.outline.updates_per_epoch

    def _write_status(self, status: Status) -> None:
        if is_main():
            write_status(self.outline.folder, status)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl``."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
