"""Phase 1 of a run: parts that a rank builds alone. No collective operation, nothing on disk; `up check` is this phase."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from up.build.data import build_dataset, build_device_side, build_evaluation, train_batches
from up.build.experiment import missing_files
from up.build.features import Features, features_of
from up.build.finetune import freezing_of, prepare_net
from up.build.first_images import fit_to_images
from up.build.network import build_net, distillation_of, precision_of, to_device
from up.build.supernet import architecture_search_of
from up.build.training import build_hooks, build_trackers, early_stopping_of, optimizer_of, schedule_of, timetable
from up.data.records import Dataset
from up.data.sampler import TrainBatches
from up.deploy.exportable import require_exportable
from up.distill.build import Distillation
from up.distill.section import label_problems
from up.distill.teachers import classes_of_teacher
from up.distributed.group import is_main
from up.engine.bad_images import BadImageLog
from up.engine.clip import Clip
from up.engine.evaluate import Evaluation
from up.engine.faults import Fault, fault_from
from up.engine.features import FeatureRemoval
from up.engine.fingerprint import RunFingerprint
from up.engine.hooks import Hook, Hooks
from up.engine.precision import Precision
from up.engine.step import BatchStage, Mixing
from up.engine.stopping import EarlyStopping
from up.engine.timetable import Timetable
from up.models.net import Net
from up.optim.freezing import Freezing
from up.optim.schedules import Schedule
from up.schema.decode import missing_for_training
from up.schema.show import effective_yaml
from up.seed import be_deterministic
from up.tasks.experiment import Experiment
from up.tracking.display import Display, console_of_run
from up.tracking.epoch_lines import EpochLines
from up.tracking.log import MetricsFile
from up.tracking.tensorboard import TensorBoard
from up.tracking.trackers.hook import Trackers

if TYPE_CHECKING:
    from up.supernet.runner import ArchitectureSearch


@dataclass(frozen=True)
class RunParts:
    """Parts of a run that a rank builds alone."""

    device: torch.device
    precision: Precision
    train_data: Dataset
    test_data: Dataset | None
    class_names: list[str] | None
    batches: TrainBatches
    times: Timetable
    schedule: Schedule
    stopping: EarlyStopping
    evaluation: Evaluation | None
    net: Net  # on the device, with its initial weights
    freezing: Freezing
    stage: BatchStage
    mix: Mixing | None
    hooks: Hooks
    clip: Clip
    distillation: Distillation | None
    fault: Fault
    fingerprint: RunFingerprint  # compared on resume, and between ranks
    features: Features  # of frozen modules, for the steps that train on them
    bad_images: BadImageLog
    search: ArchitectureSearch | None = None
    loss_has_terms: bool = False  # with weights of their own, which the ranks exchange in every micro-batch; set by the dry run


def build_parts(
    experiment: Experiment, device: torch.device, *, precision: Precision | None = None, teacher_weights: bool = True
) -> RunParts:
    """Read the data and build the parts, in the order in which one needs another. Raises ``UserError`` for wrong input.

    A check passes a ``precision`` of the CPU, and leaves out ``teacher_weights`` that would have to be downloaded.
    """
    config, task = experiment.config, experiment.task
    experiment.raise_if_any([*missing_for_training(config), *missing_files(experiment), *label_problems(experiment)])
    be_deterministic(config.runtime.deterministic)
    precision = precision or precision_of(experiment, device)
    train_data = build_dataset(experiment, "train", classes_of_teacher(experiment))
    class_names, derived = task.class_names(train_data), task.derived(train_data)
    batches = train_batches(experiment, train_data)
    times = timetable(config.trainer, batches.steps_per_epoch, iter_base=config.runtime.iter_base, finetune=config.finetune)
    schedule = schedule_of(experiment, times.steps_per_epoch, times.total, batches.global_batch_size)
    evaluation = test_data = None
    if config.trainer.is_eval and config.dataset.test is not None:
        evaluation, test_data = build_evaluation(experiment, task.derived_for_evaluation(train_data), device, precision)
    net = build_net(experiment, derived)
    freezing = freezing_of(experiment, net, prepare_net(experiment, net), times.steps_per_epoch)
    require_exportable(experiment, net, class_names or (task.class_names(test_data) if test_data is not None else None))
    distillation = distillation_of(experiment, net, derived, class_names, files=teacher_weights)
    stage, mix = build_device_side(experiment, train_data, derived, device)
    if distillation is not None and teacher_weights:
        distillation = distillation.with_cache(experiment, train_data, steps_per_epoch=times.steps_per_epoch, steps=times.total)
    fit_to_images(net, train_data, stage, task.collate)
    net = to_device(experiment, net, device)
    features = features_of(experiment, train_data, net, freezing, times, mix=mix, precision=precision)
    watching, clip = build_hooks(experiment, net, class_names)
    trackers, boards = build_trackers(experiment)
    optimizer_of(experiment, net)
    return RunParts(
        device,
        precision,
        train_data,
        test_data,
        class_names,
        batches,
        times,
        schedule,
        early_stopping_of(experiment, is_evaluated=evaluation is not None),
        evaluation,
        net=net,
        freezing=freezing,
        stage=stage,
        mix=mix,
        hooks=hooks_of_rank(experiment, [*boards, *watching], trackers),
        clip=clip,
        distillation=distillation,
        fault=fault_from(os.environ, experiment.folder),
        fingerprint=fingerprint_of(experiment, train_data, batches, class_names),
        features=features,
        bad_images=BadImageLog.of(train_data, experiment.folder),
        search=architecture_search_of(experiment, train_data, batches, times.total, precision, device),
    )


def hooks_of_rank(experiment: Experiment, watching: list[Hook], trackers: Trackers | None = None) -> Hooks:
    """Return the hooks of this rank: on the main rank display, logs, trackers and those of the file; else those for every rank."""
    if not is_main():
        return Hooks([hook for hook in watching if hook.on_every_rank])
    every = experiment.config.trainer.log_interval
    tensorboard = [] if any(isinstance(hook, TensorBoard) for hook in watching) else [TensorBoard(freq=every)]
    tracking = [] if trackers is None else [trackers]
    metrics = MetricsFile(every=every, readers=[each.add for each in tracking])
    epochs = EpochLines(unit="%" if experiment.task.unit == "percent" else "")
    standing = [Display(every=every, console=console_of_run()), epochs, metrics, *tensorboard, *tracking]
    removal = [] if experiment.config.finetune is None else [FeatureRemoval(experiment.folder)]
    return Hooks([*standing, *watching, *removal])


def fingerprint_of(experiment: Experiment, data: Dataset, batches: TrainBatches, class_names: list[str] | None) -> RunFingerprint:
    """Return what a resumed run, and every rank, must have in common."""
    config = experiment.config
    return RunFingerprint(
        effective_yaml(config),
        data.fingerprint(),
        config.runtime.random_seed,
        batches.global_batch_size,
        class_names,
        config.saver.accept_data_change,
    )
