"""From a checked experiment to the run that the loop trains: everything built, the run folder ready."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from up.distributed import group
from up.build.data import (
    build_dataset,
    build_evaluation,
    device_side,
    notes_on,
    input_spec_of,
    section_of,
    train_batches,
    workers_of,
)
from up.build.network import build_net, distillation_of, device_of, load_start_weights, on_device, precision_of
from up.build.start import Start, console_of_run, find_start, open_folder, require_unfinished
from up.build.training import (
    Timetable, build_hooks, build_runner, checkpoint_lines, optimizer_of, rate_line, schedule_of, timetable,
)
from up.build.dry_run import first_batch, check_hooks, dry_run_evaluation, dry_run_optimizer, dry_run_training
from up.command_line import CommandLine
from up.schema.decode import missing_for_training
from up.schema.show import effective_yaml
from up.data.bad_images import BadImages
from up.data.loader import TrainLoader
from up.data.records import Batch
from up.data.sampler import TrainBatches
from up.deploy.served import require_exportable
from up.distill import build as distill
from up.distill.build import Distillation
from up.errors import UserError
from up.build.experiment import missing_files
from up.tasks.experiment import Experiment
from up.models.net import Net
from up.optim.schedules import Schedule
from up.engine.buffers import RankBuffers
from up.engine.clip import Clip
from up.tracking.display import Display
from up.engine.ema import build_ema
from up.tracking.epoch_lines import EpochLines
from up.engine.evaluate import Evaluation
from up.engine.faults import fault_from
from up.engine.hooks import Hook, Hooks, Outline
from up.tracking.log import LOGGER, MetricsFile, TensorBoard
from up.engine.parallel import on_many_ranks
from up.engine.precision import Precision
from up.engine.bad_images import BadImageLog
from up.engine.session import Checkpointing, TrainingSession
from up.engine.step import BatchStage, Mixing, Runner
from up.engine.fingerprint import Facts, changes
from up.tracking.start_log import start_lines
from up.distributed.signals import StopRequest
from up.distributed.signals import stoppable
from up.seed import be_deterministic
from up.text import some_of
from up.distributed.failures import join_group, local_phase, together


@dataclass(frozen=True)
class RunParts:
    """What a run is parts of, as far as a rank can build it without the others."""

    data: Any
    test_data: Any
    names: list[str] | None
    batches: TrainBatches
    times: Timetable
    schedule: Schedule
    evaluation: Evaluation | None
    net: Net
    mix: Mixing | None
    stage: BatchStage
    hooks: Hooks
    clip: Clip
    precision: Precision
    distillation: Distillation | None


def build_run(experiment: Experiment, stop: StopRequest, command: CommandLine) -> TrainingSession:
    """Build everything that training needs. Raises ``UserError`` before anything is created where the input is wrong.

    ``command`` is named where it, with other values, is what resumes a run or starts another. Raises ``NothingToDo`` for a run
    that is finished.
    """
    config, task = experiment.config, experiment.task
    with local_phase():
        experiment.raise_if_any([*missing_for_training(config), *missing_files(experiment)])
        device = device_of(experiment)
    with stoppable(stop):
        join_group(device, timeout_s=config.runtime.dist.timeout, backend=config.runtime.dist.backend)
    be_deterministic(config.runtime.deterministic)
    with together():
        parts = build_parts(experiment, device)
        fault = fault_from(os.environ, experiment.folder)
    facts = facts_of_run(experiment, parts)
    require_one_input(facts)
    start = find_start(experiment, facts, parts.times.keep)
    require_unfinished(experiment, start, parts.times, command)
    distillation = parts.distillation
    if distillation is not None:
        distillation = distillation.preflight(experiment, parts.evaluation, parts.test_data, device)
    with together():
        told = load_start_weights(experiment, parts.net, parts.names) if start.checkpoint is None else []
    net = on_device(experiment, parts.net, device)
    dry_run(experiment, parts)
    open_folder(experiment, start, facts.config, command)
    runner = build_runner(
        experiment, net, distillation, stage=parts.stage, mix=parts.mix, device=device, compiled=config.runtime.compile
    )
    wrapped = on_many_ranks(
        runner.net, parallel=config.runtime.parallel, static_graph=config.runtime.static_graph,
        accumulate=config.trainer.accumulate, find_unused=config.runtime.allow_dead_parameter,
        first_loss=example_loss(experiment, runner, device),
    )
    runner = runner.over(wrapped)
    optimizer = optimizer_of(experiment, parts.net)
    runner.add_parameters_to(optimizer)
    log_start(experiment, parts, distillation, [*told, *start_lines(parts.net, optimizer)])
    ema = build_ema(parts.net, enable=config.ema.enable, ema_type=config.ema.ema_type, kwargs=config.ema.kwargs.model_dump())
    workers, times = workers_of(section_of(experiment, "train")), parts.times
    session = TrainingSession(
        outline=Outline(
            experiment.folder, parts.net, times.total, times.updates_per_epoch, parts.batches.global_batch_size, parts.names,
            sample_batch=parts.evaluation.first_batch if parts.evaluation else None,
            is_evaluated=lambda step: parts.evaluation is not None and times.evaluate.is_due(step),
        ),
        fingerprint=facts, runner=runner, optimizer=optimizer, schedule=parts.schedule, precision=parts.precision, clip=parts.clip, ema=ema,
        loader_from=lambda step: TrainLoader(
            parts.data, parts.batches, start_step=step, end_step=times.total, workers=workers, collate=task.collate
        ),
        evaluation=parts.evaluation, evaluate_every=times.evaluate,
        checkpointing=Checkpointing(start.folder, times.save, start.checkpoint), hooks=parts.hooks, stop=stop, fault=fault,
        buffers=RankBuffers(parts.net, ema, average=config.runtime.async_norm),
        bad_images=BadImageLog(BadImages(max_bad=parts.data.max_bad, total=len(parts.data)), experiment.folder),
    )
    restore(session, start)
    return session


def restore(session: TrainingSession, start: Start) -> None:
    """Continue from the checkpoint of ``start``, if there is one."""
    if start.checkpoint is not None and start.state is not None:
        with together():
            session.restore(start.checkpoint, start.state, is_own=start.own_state is not None)
        LOGGER.info("resumed from %s at step %d", start.checkpoint, session.progress.step)


def log_start(experiment: Experiment, parts: RunParts, distillation: Distillation | None, lines: list[str]) -> None:
    """Log on rank 0 what the run is parts of, with ``lines`` about the net, and what is probably a mistake."""
    if not group.is_main():
        return
    report = experiment.task.data_report(parts.data, parts.test_data)
    of_teachers, warnings = distill.start_lines(experiment, distillation)
    rates = rate_line(experiment, parts.schedule, parts.times.total, parts.batches.global_batch_size)
    for line in [*report.lines, *of_teachers, *lines, rates, *checkpoint_lines(experiment, parts.times)]:
        LOGGER.info(line)
    for warning in [*notes_on(parts.data, parts.test_data), *experiment.decoded.origins.locate(report.warnings), *warnings]:
        LOGGER.warning(str(warning))


def build_parts(
    experiment: Experiment, device: torch.device, *, precision: Precision | None = None, teacher_weights: bool = True
) -> RunParts:
    """Read the data and build the parts. Nothing is created, and no rank waits for another.

    A check gives a ``precision`` that the CPU has, and leaves out the ``teacher_weights`` that would have to be downloaded.
    """
    config, task = experiment.config, experiment.task
    precision = precision or precision_of(experiment, device)
    data = build_dataset(experiment, "train")
    names, facts = task.class_names(data), task.derived(data)
    batches = train_batches(experiment, data)
    times = timetable(experiment, batches.updates_per_epoch)
    schedule = schedule_of(experiment, times.updates_per_epoch, times.total, batches.global_batch_size)
    evaluation = test_data = None
    if config.trainer.is_eval and config.dataset.test is not None:
        evaluation, test_data = build_evaluation(experiment, task.derived_for_evaluation(data), device, precision)
    net = build_net(experiment, facts)
    require_exportable(experiment, net, names or (task.class_names(test_data) if test_data is not None else None))
    distillation = distillation_of(experiment, net, facts, names, files=teacher_weights)
    mix, stage = device_side(experiment, data, facts, device)
    if distillation is not None and teacher_weights:
        distillation = distillation.with_cache(
            experiment, data, updates_per_epoch=times.updates_per_epoch, updates=times.total
        )
    watching, clip = build_hooks(experiment)
    check_hooks(experiment, watching, net, names)
    dry_run_optimizer(experiment, net)
    everywhere = [hook for hook in watching.values() if hook.on_every_rank]
    hooks = Hooks([*standing_hooks(experiment), *watching.values()] if group.is_main() else everywhere)
    return RunParts(
        data, test_data, names, batches, times, schedule, evaluation, net, mix, stage, hooks, clip, precision, distillation
    )


def dry_run(experiment: Experiment, parts: RunParts) -> None:
    """The first update and the first evaluation on two images. Raises ``ConfigError``; nothing is created or changed."""
    with together():
        train = first_batch(experiment, "train", parts.data)
        test = first_batch(experiment, "test", parts.test_data) if parts.evaluation is not None else None
    with together():
        dry_run_training(experiment, parts.net, train, stage=parts.stage, mix=parts.mix, precision=parts.precision)
        if test is not None and parts.evaluation is not None:
            dry_run_evaluation(experiment, parts.net, test, parts.evaluation)


def facts_of_run(experiment: Experiment, parts: RunParts) -> Facts:
    """What a resume compares with the run that saved a checkpoint."""
    config = experiment.config
    return Facts(
        effective_yaml(config), parts.data.fingerprint(), config.runtime.random_seed, parts.batches.global_batch_size, parts.names,
        config.saver.accept_data_change,
    )


def require_one_input(facts: Facts) -> None:
    """Raise ``UserError`` on every rank when one of them reads another configuration or other data than rank 0."""
    main_config, main_data = group.from_main((facts.config, facts.data_sha256))
    with together():
        different = changes(main_config, facts.config)
        if different:
            raise UserError(f"this rank was given another configuration than rank 0: {some_of(different, 5)}.")
        if facts.data_sha256 != main_data:
            raise UserError(
                f"this rank reads other training data than rank 0 (sha256 {facts.data_sha256[:12]}…, there {main_data[:12]}…). "
                "Every host must have the same meta files."
            )


def example_loss(experiment: Experiment, runner: Runner, device: torch.device) -> Callable[[], torch.Tensor] | None:
    """What computes the loss of two images of noise as a step does; None where the size of the images is not known."""
    spec = input_spec_of(experiment) if group.is_parallel() else None
    if spec is None:
        return None

    def loss() -> torch.Tensor:
        batch = experiment.task.example(runner.model, spec.size, 2)
        moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        return runner.training_step(Batch(moved), step=0).loss

    return loss


def standing_hooks(experiment: Experiment) -> list[Hook]:
    """What every run shows and writes."""
    every = experiment.config.trainer.log_interval
    tensorboard = [] if any(hook.type == "train_val_logger" for hook in experiment.config.hooks) else [TensorBoard(freq=every)]
    return [Display(every=every, console=console_of_run()), EpochLines(), MetricsFile(freq=every), *tensorboard]
