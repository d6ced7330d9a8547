"""Build timetable, schedule, optimizer, runner, clipping and hooks of an experiment."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from up.build.finetune import section_of
from up.distill.build import Distillation
from up.engine.clip import Clip, ClipNorm, NormLog
from up.engine.ema import Ema, NoEma, build_ema
from up.engine.hooks import Hook
from up.engine.step import BatchStage, Mixing, Runner
from up.engine.stopping import EarlyStopping
from up.engine.timetable import PREDECESSORS, AnyOf, Every, Retention, Timetable
from up.errors import UserError
from up.models.net import Net
from up.optim import build_optimizer, build_schedule, lr_of
from up.optim.schedules import Schedule, Staged
from up.schema.finetune import FinetuneSection
from up.schema.trainer import SchedulePart, TrainerSection
from up.tasks.experiment import Experiment
from up.text import unused_name
from up.tracking.tensorboard import TensorBoard
from up.tracking.trackers.hook import Trackers
from up.tracking.trackers.tracker import Tracker

if TYPE_CHECKING:
    from up.supernet.runner import ArchitectureSearch


def timetable(
    trainer: TrainerSection, steps_per_epoch: int, *, iter_base: bool = False, finetune: FinetuneSection | None = None
) -> Timetable:
    """Build the timetable of ``trainer``: epochs, or steps where ``runtime.iter_base`` says so.

    Checkpoints of ``save_freq`` and ``save_cur_freq`` stay if all are to be kept. ``save_latest_freq`` and ``keep_every`` are
    due too where they are given, and so are those that ``finetune`` averages.
    """
    total = trainer.max_iter or (trainer.max_epoch or 0) * steps_per_epoch
    unit = 1 if iter_base else steps_per_epoch
    stop = trainer.stop_epoch * steps_per_epoch if trainer.stop_epoch else None
    stop = stop if stop is not None and stop < total else None
    evaluate = Every(trainer.eval_interval or trainer.test_freq * unit, max(0, trainer.test_start) * unit, total, stop)
    start = max(0, trainer.save_start) * unit
    asked = [Every(trainer.save_interval or trainer.save_freq * unit, start, total)]
    if trainer.save_cur_freq is not None or trainer.save_cur_start is not None:
        asked.append(Every((trainer.save_cur_freq or 1) * unit, max(0, trainer.save_cur_start or 0) * unit, total))
    between = [Every(trainer.save_latest_freq * unit, start, total)] if trainer.save_latest_freq else []
    for_good = [Every(trainer.keep_every * unit, 0, total)] if trainer.keep_every else []
    last, kept = (PREDECESSORS + 1, asked) if trainer.keep_last == "all" else (trainer.keep_last, [])
    best = trainer.keep_best or 0
    if finetune is not None and finetune.swa is not None:
        for_good.append(Every(steps_per_epoch, total - (finetune.swa.epochs - 1) * steps_per_epoch, total))
    if finetune is not None and finetune.wise_ft is not None and finetune.probe is not None:
        for_good.append(Every(0, 0, finetune.probe.epochs * steps_per_epoch))  # where the line of WiSE-FT starts
    if finetune is not None and finetune.average is not None:
        last = max(last, finetune.average.last)
    if finetune is not None and finetune.soup is not None:
        best = max(best, finetune.soup.top)
    keeping = Retention(last, AnyOf([*kept, *for_good]), _why_deleted(trainer), best=best)
    in_epochs = not iter_base and trainer.save_interval is None
    save = AnyOf([*asked, *between, *for_good])
    return Timetable(steps_per_epoch, total, evaluate, save, keeping, stop, in_epochs=in_epochs)


def _why_deleted(trainer: TrainerSection) -> str:
    if trainer.keep_last == "all":
        return "only trainer.save_latest_freq asks for them"
    written = "keep_last" in trainer.model_fields_set
    rule = "only_save_latest: true" if trainer.only_save_latest and not written else f"keep_last: {trainer.keep_last}"
    return f"trainer.{rule}{'' if written or trainer.only_save_latest else ', the default'}; trainer.keep_last: all keeps them"


def early_stopping_of(experiment: Experiment, *, is_evaluated: bool) -> EarlyStopping:
    """Build the rule of ``trainer.early_stopping``. Raises ``ConfigError`` for a rule on evaluations in a run without them."""
    trainer = experiment.config.trainer
    needing = [key for key in ("early_stopping", "keep_best") if getattr(trainer, key) is not None]
    if needing and not is_evaluated:
        what = "needs evaluations, and this run has none. Add dataset.test and leave trainer.is_eval true, or remove it."
        raise experiment.error(what, key=f"trainer.{needing[0]}")
    section = trainer.early_stopping
    return EarlyStopping() if section is None else EarlyStopping(**section.model_dump())


def schedule_of(experiment: Experiment, steps_per_epoch: int, total: int, global_batch_size: int) -> Schedule:
    """Build the learning rate as a function of the step; constant without a scheduler."""
    trainer = experiment.config.trainer
    part = trainer.lr_scheduler or SchedulePart(type="constant", warmup_register_type="no_scale_lr")
    if experiment.config.schedule_counts_steps:
        epochs = part.kwargs["T_max"] / steps_per_epoch
        part = part.model_copy(update={"kwargs": {**part.kwargs, "T_max": epochs}})
    optimizer, table = trainer.optimizer, experiment.tables["optimizer"]
    with experiment.placing("trainer.optimizer"):
        base_lr = lr_of(optimizer.type, optimizer.kwargs, table) if optimizer else 0.0
    probe, swa = section_of(experiment).probe, section_of(experiment).swa
    for name, section in (("probe", probe), ("swa", swa)):
        if section is not None and section.epochs * steps_per_epoch >= total:
            what = f"got {section.epochs} epochs, expected fewer than the run has, {total / steps_per_epoch:.3g}. Train longer."
            raise experiment.error(what, key=f"finetune.{name}.epochs")
    first, last = (each.epochs * steps_per_epoch if each else 0 for each in (probe, swa))
    if probe is not None and swa is not None and first + last >= total:
        what = f"got {swa.epochs} epochs, expected fewer than the {total / steps_per_epoch - probe.epochs:.3g} after finetune.probe"
        raise experiment.error(f"{what}. Train longer.", key="finetune.swa.epochs")
    with experiment.placing("trainer.lr_scheduler"):
        main = build_schedule(
            base_lr=base_lr,
            updates_per_epoch=steps_per_epoch,
            total_updates=max(1, total - first),
            global_batch_size=global_batch_size,
            table=experiment.tables["lr_scheduler"],
            **part.model_dump(),
        )
    if probe is None and (swa is None or swa.lr is None):
        return main
    return Staged(
        main,
        first=first,
        first_lr=probe.lr or main.target if probe else 0.0,
        last_from=total - last if swa and swa.lr else None,
        last_lr=swa.lr or 0.0 if swa else 0.0,
    )


def lr_line(experiment: Experiment, schedule: Schedule, total: int, global_batch_size: int) -> str:
    """Format the first, highest and last learning rate of a run."""
    first, (step, highest), last = schedule.extremes(total)
    text = f"learning rate: {first:.4g}"
    if not first == highest == last:
        most = "" if highest == first else f" {highest:.4g} at most (step {step + 1:,}),"
        text += f" at first,{most} {last:.4g} at last"
    part = experiment.config.trainer.lr_scheduler
    if part is not None and part.warmup_register_type == "base" and global_batch_size > 1:
        text += f"; lr is per image (warmup_register_type: base), scaled by the global batch size {global_batch_size:,}"
    return text


def optimizer_of(experiment: Experiment, net: Net, *, warn: bool = True) -> Optimizer:
    """Build the optimizer over the trainable parameters, in groups; without ``warn`` in silence, where it was built before."""
    part = experiment.config.trainer.optimizer
    assert part is not None, "missing_for_training comes first"
    with experiment.placing("trainer.optimizer"), warnings.catch_warnings():
        if not warn:
            warnings.simplefilter("ignore")
        table = experiment.tables["optimizer"]
        return build_optimizer(
            net, part.type, pconfig=part.pconfig, special_param_group=part.special_param_group, table=table, **part.kwargs
        )


def ema_of(experiment: Experiment, net: Net) -> Ema | NoEma:
    """Build the moving average of the section ``ema``, from the weights that ``net`` has now."""
    section = experiment.config.ema
    return build_ema(net, enable=section.enable, ema_type=section.ema_type, kwargs=section.kwargs.model_dump())


def build_runner(
    experiment: Experiment,
    net: nn.Module,
    addition: Distillation | ArchitectureSearch | None,
    *,
    stage: BatchStage,
    mix: Mixing | None,
    device: torch.device,
    compiled: bool = False,
) -> Runner:
    """Build the runner of ``runtime.runner``, which turns a batch into a loss; ``addition`` is what it has beside the net.

    ``compiled`` compiles teachers too, where the configuration compiles the net.
    """
    runtime = experiment.config.runtime
    arguments: dict[str, object] = {
        "net": net,
        "loss_of": experiment.task.loss,
        "stage": stage,
        "mix": mix,
        "seed": runtime.random_seed,
    }
    if addition is not None:
        mode = runtime.compile_mode if compiled else None
        arguments |= addition.runner_arguments(net, device, channels_last=runtime.channels_last, compile_mode=mode)
    runner: Runner = experiment.build(runtime.runner, "runner", arguments, "runtime.runner")
    return runner


def build_trackers(experiment: Experiment) -> tuple[Trackers | None, list[TensorBoard]]:
    """Build the trackers of the file: those that work in another process, and TensorBoard. Two of one type get a number.

    Raises ``UserError`` for a library that is not installed.
    """
    feeding: dict[str, Tracker] = {}
    boards: list[TensorBoard] = []
    for index, part in enumerate(experiment.config.trackers):
        place = f"trackers.{index}"
        built: Tracker | TensorBoard = experiment.build(part, "tracker", {}, place)
        with experiment.placing(place):
            if isinstance(built, TensorBoard):
                built.check_folder()
                boards.append(built)
                continue
            built.check()
            _require_plain(built)
        feeding[unused_name(part.type, feeding)] = built
    if len(boards) + [hook.type for hook in experiment.config.hooks].count("train_val_logger") > 1:
        what = "TensorBoard would be written twice: keep one of the tracker tensorboard and the hook train_val_logger."
        raise experiment.error(what, key="trackers")
    return Trackers(feeding, experiment.config.model_dump()) if feeding else None, boards


def _require_plain(tracker: Tracker) -> None:
    try:
        pickle.dumps(tracker)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        what = f"{type(tracker).__name__} cannot be sent to another process ({error})"
        raise UserError(what, fix="Keep plain settings in its constructor, and open what it needs in start().") from error


def build_hooks(experiment: Experiment, net: Net, class_names: list[str] | None) -> tuple[list[Hook], Clip]:
    """Build the hooks of the file, checked against the net, and the clipping policy, which older files have among them."""
    watching: list[Hook] = []
    policies: list[Clip] = []
    for index, part in enumerate(experiment.config.hooks):
        place = f"hooks.{index}"
        built: Hook | Clip = experiment.build(part, "hook", {}, place)
        policies += [] if isinstance(built, Hook) else [built]
        hook = built if isinstance(built, Hook) else NormLog(built)
        with experiment.placing(place):
            hook.check(net, class_names)
        watching.append(hook)
    if experiment.config.trainer.clip_norm is not None:
        policies.append(ClipNorm(max_norm=experiment.config.trainer.clip_norm))
    if len(policies) > 1:
        what = "the gradients would be clipped twice: keep one of trainer.clip_norm and the hook grad_clipper."
        raise experiment.error(what, key="hooks")
    return watching, policies[0] if policies else Clip()
