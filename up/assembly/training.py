"""From a checked experiment to what drives its training: optimizer, schedule, timetable, clipping, hooks."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from up.config.errors import Problem
from up.config.sections import SchedulePart, Trainer
from up.experiment import Experiment
from up.models.net import Net
from up.optim import build_optimizer, build_schedule, lr_of
from up.optim.schedules import Schedule
from up.runner.clip import Clip, ClipNorm, NoClip, NormLog
from up.runner.every import AnyOf, Every
from up.runner.hooks import Hook
from up.text import count


@dataclass(frozen=True)
class Timetable:
    """How long a run is, in updates, and when it evaluates and saves."""

    updates_per_epoch: int
    total: int
    evaluate: Every
    save: Every | AnyOf


def timetable(experiment: Experiment, updates_per_epoch: int) -> Timetable:
    """The timetable of ``trainer``: epochs, or updates where ``runtime.iter_base`` says so."""
    trainer = experiment.config.trainer
    total = trainer.max_iter or (trainer.max_epoch or 0) * updates_per_epoch
    unit = 1 if experiment.config.runtime.iter_base else updates_per_epoch
    evaluate = Every(trainer.eval_interval or trainer.test_freq * unit, max(0, trainer.test_start) * unit, total)
    return Timetable(updates_per_epoch, total, evaluate, saving(trainer, unit, total))


def saving(trainer: Trainer, unit: int, total: int) -> Every | AnyOf:
    """When checkpoints are due: by ``save_freq``, and by ``save_latest_freq`` and ``save_cur_freq`` where they are given.

    ``unit`` is how many steps a period of 1 has.
    """
    start = max(0, trainer.save_start) * unit
    periods = [(trainer.save_freq, start), *([(trainer.save_latest_freq, start)] if trainer.save_latest_freq else [])]
    if trainer.save_cur_freq is not None or trainer.save_cur_start is not None:
        periods.append((trainer.save_cur_freq or 1, max(0, trainer.save_cur_start or 0) * unit))
    schedules = [Every(period * unit, first, total) for period, first in periods]
    return schedules[0] if len(schedules) == 1 else AnyOf(schedules)


def schedule_of(experiment: Experiment, updates_per_epoch: int, total: int, global_batch_size: int) -> Schedule:
    """The learning rate as a function of the step; constant where no scheduler is named."""
    trainer = experiment.config.trainer
    part = trainer.lr_scheduler or SchedulePart(type="constant", warmup_register_type="no_scale_lr")
    if experiment.config.schedule_counts_steps:
        epochs = part.kwargs["T_max"] / updates_per_epoch
        part = part.model_copy(update={"kwargs": {**part.kwargs, "T_max": epochs}})
    optimizer, table = trainer.optimizer, experiment.tables["optimizer"]
    with experiment.placing("trainer.optimizer"):
        base_lr = lr_of(optimizer.type, optimizer.kwargs, table) if optimizer else 0.0
    with experiment.placing("trainer.lr_scheduler"):
        return build_schedule(
            base_lr=base_lr, updates_per_epoch=updates_per_epoch, total_updates=total, global_batch_size=global_batch_size,
            table=experiment.tables["lr_scheduler"], **part.model_dump(),
        )  # fmt: skip


def rate_line(experiment: Experiment, schedule: Schedule, total: int, global_batch_size: int) -> str:
    """The learning rates of a run in a line: what the scheduler makes of ``lr``."""
    first, (step, highest), last = schedule.extremes(total)
    said = f"learning rate: {first:.4g}"
    if not first == highest == last:
        said += f" at first, {highest:.4g} at most (update {step + 1:,}), {last:.4g} at last"
    part = experiment.config.trainer.lr_scheduler
    if part is not None and part.warmup_register_type == "base" and global_batch_size > 1:
        said += f"; lr is of one image (warmup_register_type: base), times {count(global_batch_size, 'image')} an update"
    return said


def optimizer_of(experiment: Experiment, net: Net) -> Optimizer:
    """The optimizer over the parameters that train, in groups."""
    part = experiment.config.trainer.optimizer
    assert part is not None, "missing_for_training comes first"
    special = [group.model_dump(exclude_none=True) for group in part.special_param_group]
    rules = part.pconfig.model_dump(exclude_none=True)
    with experiment.placing("trainer.optimizer"):
        table = experiment.tables["optimizer"]
        return build_optimizer(net, part.type, pconfig=rules, special_param_group=special, table=table, **part.kwargs)


def build_hooks(experiment: Experiment) -> tuple[dict[str, Hook], Clip]:
    """The hooks that watch, by their places in the file, and the policy of clipping, which older files write among them."""
    trainer = experiment.config.trainer
    places = {f"hooks.{index}": part for index, part in enumerate(experiment.config.hooks)}
    built = {place: experiment.build(part, "hook", {}, place) for place, part in places.items()}
    policies: list[Clip] = [part for part in built.values() if not isinstance(part, Hook)]
    if trainer.clip_norm is not None:
        policies.append(ClipNorm(max_norm=trainer.clip_norm))
    if len(policies) > 1:
        what = "the gradients would be clipped twice: keep one of trainer.clip_norm and the hook grad_clipper."
        experiment.refuse([Problem("hooks", what)])
    watching = {place: part if isinstance(part, Hook) else NormLog(part) for place, part in built.items()}
    return watching, policies[0] if policies else NoClip()
