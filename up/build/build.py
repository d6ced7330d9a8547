"""Build the training session of an experiment in three phases: build alone, join and compare, commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.optim import Optimizer

from up.build.averaging import average_weights
from up.build.check_task import check_and_dry_run
from up.build.data import example_batch, preprocessing_of_images
from up.build.features import steps_from
from up.build.fit import fit_machine
from up.build.network import select_device, synchronize_and_compile
from up.build.outline import findings_of, outline_of
from up.build.parts import RunParts, build_parts
from up.build.start import (
    Start,
    attach_l2sp,
    find_start,
    keep_start,
    log_start,
    lost_best,
    open_folder,
    require_unfinished,
    trained_images,
)
from up.build.training import build_runner, ema_of, optimizer_of
from up.command_line import CommandLine
from up.distributed.failures import join_group, local_phase, on_all_ranks
from up.distributed.group import is_main, is_parallel
from up.distributed.signals import StopRequest, stoppable
from up.engine.hooks import Hooks
from up.engine.memory import Memory
from up.engine.parallel import RankBuffers, on_many_ranks
from up.engine.session import Checkpointing, TrainingSession
from up.engine.step import Runner
from up.tasks.experiment import Experiment


def build_run(experiment: Experiment, stop: StopRequest, command: CommandLine) -> TrainingSession:
    """Build a training session. Raises ``UserError`` before anything is created or changed where the input is wrong.

    Messages suggest ``command`` with other values to resume or start a run. Raises ``NothingToDo`` for a finished run.
    """
    # no collective operation, nothing on disk; a failure is raised by the ranks that wait below, too
    with local_phase(), experiment.plugin_errors():
        device = select_device(experiment)
    experiment, choices = fit_machine(experiment, device, stop)  # only where something is `auto`
    with local_phase(), experiment.plugin_errors():
        parts = check_and_dry_run(experiment, build_parts(experiment, device))  # first step and first evaluation on two images
    parts, start = join_and_compare(experiment, parts, stop, command)
    return commit(experiment, parts, start, stop, command, [*map(str, choices)])


def join_and_compare(experiment: Experiment, parts: RunParts, stop: StopRequest, command: CommandLine) -> tuple[RunParts, Start]:
    """Phase 2: join the process group, compare the input of all ranks, and find the start. Writes nothing."""
    dist = experiment.config.runtime.dist
    with stoppable(stop):
        join_group(parts.device, timeout_s=dist.timeout, backend=dist.backend)  # waits until all ranks have built their parts
    start = find_start(experiment, parts)  # every rank reads the checkpoint, or the initial weights
    require_unfinished(experiment, start, parts, command)
    if parts.distillation is not None:  # the ranks share the images on which teachers are scored
        scored = parts.distillation.preflight(experiment, parts.evaluation, parts.test_data, parts.device)
        parts = replace(parts, distillation=scored)
    return parts, start


def commit(
    experiment: Experiment, parts: RunParts, start: Start, stop: StopRequest, command: CommandLine, chosen: Sequence[str] = ()
) -> TrainingSession:
    """Phase 3: wrap the net, build optimizer and EMA, restore them; then create the run folder, the first write to disk."""
    config = experiment.config
    uncompiled = synchronize_and_compile(experiment, parts.net, trains=True)
    addition = parts.distillation or parts.search
    runner = build_runner(experiment, parts.net, addition, stage=parts.stage, mix=parts.mix, device=parts.device, compiled=True)
    wrapped, remarks = on_many_ranks(  # sends the weights of rank 0 to all
        runner.net,
        parallel=config.runtime.parallel,
        static_graph=config.runtime.static_graph and not parts.freezing.changes and runner.trains_all_weights,
        accumulate=config.trainer.accumulate,
        find_unused=config.runtime.allow_dead_parameter or parts.freezing.changes or not runner.trains_all_weights,
        first_loss=example_loss(experiment, runner, parts.device),
    )
    runner = runner.over(wrapped)
    optimizer = optimizer_of(experiment, parts.net, warn=False)  # again: wrapping the net may have changed its tensors
    runner.add_parameters_to(optimizer)
    attach_l2sp(experiment, parts.net, optimizer, start.checkpoint)
    session = session_of(experiment, parts, start, runner, optimizer, stop)
    with on_all_ranks():
        if start.checkpoint is not None and start.state is not None:
            parts.freezing.apply(max(0, start.state["step"] - 1))  # the buffers of a checkpoint are those that trained
            session.restore(start.checkpoint, start.state, is_own=start.own_state is not None)
        warnings = open_folder(experiment, parts, start, command)
        keep_start(experiment, start.checkpoint, parts.net, parts.class_names)
    lost = lost_best(experiment, start)
    if lost:
        session.progress.best = {}
        warnings = [*warnings, lost]
    log_start(experiment, parts, start, optimizer, [*warnings, *uncompiled, *remarks], chosen)
    return session


def session_of(
    experiment: Experiment, parts: RunParts, start: Start, runner: Runner, optimizer: Optimizer, stop: StopRequest
) -> TrainingSession:
    """Build the session of ``parts``, at its first step."""
    config, times, evaluation = experiment.config, parts.times, parts.evaluation
    ema = ema_of(experiment, parts.net)
    preprocessing = preprocessing_of_images(experiment)
    return TrainingSession(
        outline=outline_of(experiment, parts),
        findings=lambda evaluator: findings_of(experiment, parts, evaluator),
        freezing=parts.freezing,
        fingerprint=parts.fingerprint,
        runner=runner,
        optimizer=optimizer,
        schedule=parts.schedule,
        precision=parts.precision,
        clip=parts.clip,
        ema=ema,
        buffers=RankBuffers(parts.net, ema, average=config.runtime.async_norm),
        memory=Memory(
            runner.net,
            policy=config.trainer.out_of_memory,
            ranks_meet=parts.loss_has_terms,
            strike=parts.fault.exhaust if parts.fault.action else None,
        ),
        loader_from=steps_from(
            experiment, parts.features.cache, parts.train_data, parts.batches, times.total, stop, parts.bad_images
        ),
        evaluation=evaluation,
        evaluate_every=times.evaluate,
        checkpointing=Checkpointing(start.folder, times.save, start.checkpoint, config.trainer.best_within),
        bad_images=parts.bad_images,
        hooks=Hooks([*parts.hooks.hooks, *([*runner.hooks, trained_images(parts)] if is_main() else ())]),
        stop=stop,
        stopping=parts.stopping,
        stop_step=times.stop,
        fault=parts.fault,
        report_every=config.trainer.log_interval,
        preprocessing=preprocessing.as_record() if preprocessing is not None else None,
        average=lambda session: average_weights(experiment, session),
    )


def example_loss(experiment: Experiment, runner: Runner, device: torch.device) -> Callable[[], torch.Tensor] | None:
    """Return a function that computes the loss of two images of noise as a step does; None if the image size is unknown."""
    batch = example_batch(experiment, runner.model, device) if is_parallel() and runner.trains_all_weights else None
    return None if batch is None else lambda: runner.training_step(batch, step=0).loss
