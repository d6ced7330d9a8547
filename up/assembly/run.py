"""From a checked experiment to the run that the loop trains: everything built, the run folder ready."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

from rich.console import Console

from up import distributed
from up.assembly.data import build_dataset, build_evaluation, section_of, train_batches, workers_of
from up.assembly.network import build_net, device_of, load_start_weights, on_device, precision_of
from up.assembly.training import build_hooks, optimizer_of, schedule_of, timetable
from up.config.decode import missing_for_training
from up.config.show import effective_yaml
from up.data.loader import TrainLoader
from up.errors import NumericalError, StorageError, UserError
from up.experiment import Experiment, missing_files
from up.files import write_text
from up.runner.checkpoint import CheckpointFolder
from up.runner.display import Display, show_log_on
from up.runner.ema import build_ema
from up.runner.folder import Status, open_run_folder, set_earlier_run_aside, write_status
from up.runner.hooks import Hook, Hooks, Outline
from up.runner.log import LOGGER, MetricsFile, TensorBoard, log_to
from up.runner.run import Facts, Run
from up.runner.runner import Runner
from up.runner.start_log import start_lines
from up.runner.stop import StopRequest


def assemble(experiment: Experiment, stop: StopRequest) -> Run:
    """Build everything that training needs. Raises ``UserError`` before anything is created where the input is wrong."""
    config, plugin = experiment.config, experiment.plugin
    experiment.refuse([*missing_for_training(config), *missing_files(experiment)])
    device = device_of(experiment)
    distributed.join(device, timeout_s=config.runtime.dist.timeout, backend=config.runtime.dist.backend)
    precision = precision_of(experiment, device)
    train_data = build_dataset(experiment, "train")
    names, facts = plugin.class_names(train_data), plugin.data_facts(train_data)
    source = section_of(experiment, "train")
    batches = train_batches(experiment, train_data)
    times = timetable(experiment, batches.updates_per_epoch)
    schedule = schedule_of(experiment, times.updates_per_epoch, times.total, batches.global_batch_size)
    evaluation = None
    if config.trainer.is_eval and config.dataset.test is not None:
        evaluation, _ = build_evaluation(experiment, plugin.later_data_facts(train_data), device, precision)
    net = build_net(experiment, facts)
    batch_fn = source.dataloader.kwargs.batch_fn
    place = "dataset.train.dataloader.kwargs.batch_fn"
    built_fn = experiment.build(batch_fn, "batch_fn", facts, place) if batch_fn else None
    with experiment.placing("dataset.train.dataset.kwargs.transformer"):
        mix = plugin.mixing(train_data, built_fn)
        stage = plugin.device_stage(train_data, device, config.runtime.channels_last)
    watching, clip = build_hooks(experiment)

    checkpoints, resume_from = open_checkpoints(experiment)
    if resume_from is None:
        load_start_weights(experiment, net, names)
    called = on_device(experiment, net, device)
    optimizer = optimizer_of(experiment, net)
    for line in start_lines(net, optimizer):
        LOGGER.info(line)
    outline = Outline(
        experiment.folder, net, times.total, times.updates_per_epoch, batches.global_batch_size, names,
        sample_batch=evaluation.first_batch if evaluation else None,
    )  # fmt: skip
    workers = workers_of(source)
    return Run(
        outline=outline,
        facts=Facts(
            effective_yaml(config), train_data.fingerprint(), config.runtime.random_seed, batches.global_batch_size, names,
            config.saver.accept_data_change,
        ),
        runner=Runner(called, loss_of=plugin.loss_of, stage=stage, mix=mix, seed=config.runtime.random_seed),
        optimizer=optimizer, schedule=schedule, precision=precision, clip=clip,
        ema=build_ema(net, enable=config.ema.enable, ema_type=config.ema.ema_type, kwargs=config.ema.kwargs.model_dump()),
        loader_from=lambda step: TrainLoader(
            train_data, batches, start_step=step, end_step=times.total, workers=workers, collate=plugin.collate
        ),
        evaluation=evaluation, evaluate_every=times.evaluate, save_every=times.save,
        checkpoints=checkpoints, resume_from=resume_from, hooks=Hooks([*standing_hooks(experiment), *watching]), stop=stop,
    )  # fmt: skip


def open_checkpoints(experiment: Experiment) -> tuple[CheckpointFolder, Path | None]:
    """Make the run folder ready; returns its checkpoints and the one to go on from, if any.

    Own latest (``auto_resume``) before ``resume_model`` before a fresh start, for which an earlier run's files are set aside.
    """
    saver, trainer, folder = experiment.config.saver, experiment.config.trainer, experiment.folder
    keep_last = 2 if trainer.only_save_latest else trainer.keep_last
    text = effective_yaml(experiment.config)
    checkpoints = CheckpointFolder(folder, keep_last=keep_last, config_sha256=sha256(text.encode()).hexdigest())
    resume_from = Path(saver.resume_model) if saver.resume_model else None
    if resume_from is not None and not resume_from.is_file():
        raise UserError(f"{experiment.path}: saver.resume_model: {resume_from}: no such checkpoint.")
    if distributed.is_main():
        with experiment.placing("saver.save_dir"):
            open_run_folder(folder)
        checkpoints.sweep()
    own, passed_over = checkpoints.newest() if saver.auto_resume else (None, [])
    distributed.barrier()
    aside = None
    if distributed.is_main() and own is None and not (resume_from and resume_from.parent.resolve() == folder.resolve()):
        aside = set_earlier_run_aside(folder)
    if distributed.is_main():
        write_text(folder / "config.yaml", text)
    log_to(folder)
    show_log_on(console_of_run())
    for line in [*passed_over, *([f"an earlier run was set aside in {aside}"] if aside else [])]:
        LOGGER.warning(line)
    for note in experiment.decoded.notes:
        LOGGER.warning(str(note))
    return checkpoints, own or resume_from


@cache
def console_of_run() -> Console:
    """The terminal that progress bar and log lines share."""
    return Console(stderr=True)


def standing_hooks(experiment: Experiment) -> list[Hook]:
    """What every run shows and writes, on the main rank."""
    if not distributed.is_main():
        return []
    every = experiment.config.trainer.log_interval
    tensorboard = [] if any(hook.type == "train_val_logger" for hook in experiment.config.hooks) else [TensorBoard(freq=every)]
    return [Display(every=every, console=console_of_run()), MetricsFile(freq=every), *tensorboard]


@contextmanager
def record_failure(run: Run) -> Iterator[None]:
    """Write into ``status.json`` what ended the run before its time."""
    try:
        yield
    except (UserError, NumericalError, StorageError) as error:
        if distributed.is_main():
            write_status(run.outline.folder, Status("failed", exit_code=error.exit_code, step=run.step, reason=str(error)))
        run.hooks.on_end(run.step, "failed")
        raise
