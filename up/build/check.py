"""Check a configuration without training: its files, phase 1 of training, a batch of noise through loss and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from up.build.check_task import check_export, check_task
from up.build.data import Phase, build_batch_fn, build_evaluation, build_reader, build_transforms, input_size_of, notes_on
from up.build.dry_run import dry_run, dry_run_evaluation, first_batch, placing_modules
from up.build.experiment import missing_files
from up.build.finetune import prepare_net
from up.build.fit import fitted
from up.build.images import Track, open_images
from up.build.network import build_net, distillation_of, precision_of, preprocessing_doubts, select_device
from up.build.parts import RunParts, build_parts
from up.build.start import find_start, finished
from up.build.trained import NO_WEIGHTS, derived_from_data_only, net_to_evaluate
from up.build.training import build_hooks, build_runner, build_trackers, lr_line, optimizer_of, schedule_of, timetable
from up.config.parts import DerivedArguments
from up.deploy.exportable import export_problems, is_for_export, require_exportable
from up.distill.build import Distillation, start_lines
from up.distill.section import weights_of_teachers
from up.engine.precision import Precision
from up.errors import Problem, UserError
from up.files import unwritable
from up.models.net import Net, model_summary
from up.models.pretrained import is_downloaded, is_of_timm
from up.schema.dataset import Source
from up.schema.decode import missing_for_training
from up.schema.sections import Config
from up.schema.show import strategy_lines
from up.tasks.experiment import Experiment
from up.text import count, si

IMAGES = 2  # batch normalisation needs more than one
_ASSUMED = 1000  # steps an epoch and images a step, where the data are not read
_LATE = 10**9  # a step after every warm-up
_CPU = torch.device("cpu")
_FLOAT32 = Precision(mode=None, device=_CPU)


def check_experiment(
    experiment: Experiment, warn: Callable[[str], object], *, files: bool = True, images: Track | None = None
) -> Iterator[str]:
    """Check as ``train`` does, and yield a report in lines; ``warn`` is called for probable mistakes.

    ``images``, if given, shows the progress of opening every image. Raises the ``UserError`` that ``train`` would raise.
    Creates nothing.
    """
    yield from (f"note: {note}" for note in experiment.decoded.notes)
    yield from strategy_lines(experiment.config, experiment.decoded.origins)
    device = check_device(experiment, warn)
    if files and is_for_evaluation(experiment.config):
        experiment.raise_if_any(missing_files(experiment))
        yield from check_evaluation(experiment, warn, images)
        return
    if files:
        experiment.raise_if_any(
            [*missing_for_training(experiment.config), *missing_files(experiment), *unwritable_folders(experiment)]
        )
        with experiment.plugin_errors():
            experiment, choices = fitted(experiment, device)
            yield from map(str, choices)
            yield from check_training(experiment, warn, images)
        return
    derived = experiment.task.assumed(experiment.config.net)
    net = build_net(experiment, derived).train()
    prepare_net(experiment, net)
    build_the_rest(experiment, net, derived)
    yield from check_backward(experiment, net, distillation_of(experiment, net, derived, None, files=False))


def check_training(experiment: Experiment, warn: Callable[[str], object], images: Track | None) -> Iterator[str]:
    """Run the local phase of ``train`` on the CPU, up to the first step and the first evaluation, and report it."""
    start_absent = list(_to_download("saver.pretrain_model", experiment.config.saver.pretrain_model))
    teachers_absent = [problem for key, file in weights_of_teachers(experiment).values() for problem in _to_download(key, file)]
    parts = build_parts(experiment, _CPU, precision=_FLOAT32, teacher_weights=not teachers_absent)
    if parts.evaluation is None and experiment.config.dataset.test is not None:  # `up eval` uses it even if training does not
        evaluation, test = build_evaluation(experiment, experiment.task.derived_for_evaluation(parts.train_data), _CPU, _FLOAT32)
        parts = replace(parts, evaluation=evaluation, test_data=test)
    check_task(experiment, parts)
    times = parts.times
    yield from (f"note: {note}" for note in notes_on(parts.train_data, parts.test_data))
    length = f"{count(times.steps_per_epoch, 'step')} an epoch, {times.total:,} in all"
    yield f"train: {count(len(parts.train_data), 'image')}, {length}"
    if parts.test_data is not None:
        yield f"test: {count(len(parts.test_data), 'image')}"
    report = experiment.task.data_report(parts.train_data, parts.test_data)
    yield from report.lines
    doubts = [*report.warnings, *start_absent, *teachers_absent, *preprocessing_doubts(experiment)]
    for problem in experiment.decoded.origins.locate(doubts):
        warn(str(problem))
    if not is_for_export(experiment):
        for problem in export_problems(experiment, parts.net, parts.class_names):
            warn(f"{problem} (up to_onnx and up to_kestrel cannot export this)")
    yield from parts.freezing.lines()
    yield from parts.features.lines
    yield lr_line(experiment, parts.schedule, times.total, parts.batches.global_batch_size)
    first = first_batch(experiment, "train", parts.train_data, warn)
    yield f"first training sample: {tuple(first.image[0].shape)}"
    if images is not None:
        sources = [("train", parts.train_data), *([("test", parts.test_data)] if parts.test_data is not None else [])]
        yield from open_images(experiment, sources, images, warn)
    dry_run(experiment, parts)
    yield from (f"note: {note}" for note in check_export(experiment, parts))
    yield from check_start(experiment, parts, weights=not start_absent, teacher_weights=not teachers_absent)
    yield from check_backward(experiment, parts.net, parts.distillation)


def is_for_evaluation(config: Config) -> bool:
    """Check whether a configuration has data to evaluate or predict but none to train on."""
    return config.dataset.train is None and config.dataset.test is not None


def check_evaluation(experiment: Experiment, warn: Callable[[str], object], images: Track | None) -> Iterator[str]:
    """Load weights and test data as ``up eval`` does, and pass a first image through net and evaluator."""
    net, derived, report = net_to_evaluate(experiment, None, derived_from_data_only(experiment))
    yield from [f"note: {NO_WEIGHTS}"] if report is None else [f"weights: {report.source}", *report.remarks()]
    evaluation, test = build_evaluation(experiment, derived, _CPU, _FLOAT32)
    yield from (f"note: {note}" for note in notes_on(test))
    yield f"test: {count(len(test), 'image')}"
    first = first_batch(experiment, "test", test, warn)
    yield f"first image: {tuple(first.image[0].shape)}"
    if images is not None:
        yield from open_images(experiment, [("test", test)], images, warn)
    dry_run_evaluation(experiment, net, first, evaluation)


def check_start(experiment: Experiment, parts: RunParts, *, weights: bool, teacher_weights: bool) -> Iterator[str]:
    """Report the checkpoint or the weights that training starts from, and the teachers' scores, except those to be downloaded."""
    start = find_start(experiment, parts, weights=weights)
    done = finished(experiment, start, parts)
    if done:
        yield f"note: {done} `up train` would change nothing"
    elif start.checkpoint is not None:
        yield f"training resumes from {start.checkpoint}"
    yield from start.weights
    distillation = parts.distillation
    if distillation is not None:
        if teacher_weights:
            distillation = distillation.preflight(experiment, parts.evaluation, parts.test_data, _CPU)
        yield from distillation.lines


def check_device(experiment: Experiment, warn: Callable[[str], object]) -> torch.device:
    """Return the device that trains here; warn if this machine has no ``runtime.device``: another may train."""
    try:
        device = select_device(experiment)
        precision_of(experiment, device)
    except UserError as error:
        warn(str(error))
        precision_of(experiment, _CPU)
        return _CPU
    return device


def unwritable_folders(experiment: Experiment) -> Iterator[Problem]:
    """Report a run folder that cannot be written to."""
    reason = unwritable(experiment.folder)
    if reason is not None:
        yield Problem(f"{experiment.folder}: cannot write there: {reason}. Name another folder.", key="saver.save_dir")


def _to_download(key: str, source: str | None) -> Iterator[Problem]:
    """Report weights, named by ``key``, that are still to be downloaded."""
    if source is not None and is_of_timm(source) and not is_downloaded(source):
        what = f"{source} is not on this machine: train downloads it when it starts, and only then sees whether it fits"
        yield Problem(f"{what}. Without a network there, download it here first, or name a file.", key=key)


def build_the_rest(experiment: Experiment, net: Net, derived: DerivedArguments) -> None:
    """Build, without data, what a run would build besides the net."""
    config = experiment.config
    sections: dict[Phase, Source | None] = {"train": config.dataset.train, "test": config.dataset.test}
    for source, section in sections.items():
        if section is not None and "image_reader" in section.dataset.kwargs:
            reader, transforms = build_reader(experiment, source), build_transforms(experiment, source)
            with experiment.placing(f"dataset.{source}.dataset.kwargs.transformer"):
                experiment.task.pipeline(reader, transforms)
    if config.dataset.train is not None:
        build_batch_fn(experiment, derived)
    require_exportable(experiment, net, None, labels=False)
    build_hooks(experiment, net, None)
    build_trackers(experiment)
    if config.trainer.optimizer is not None:
        schedule_of(experiment, _ASSUMED, timetable(config.trainer, _ASSUMED).total or _ASSUMED, _ASSUMED)
        optimizer_of(experiment, net)


def check_backward(experiment: Experiment, net: Net, distillation: Distillation | None) -> Iterator[str]:
    """Run a batch of noise through net, teachers, losses and backward, and report the loss."""
    total = model_summary(net)[-1]
    yield f"net: {si(total.parameters)} parameters, {si(total.trainable)} of them trainable"
    size = input_size_of(experiment)
    runner = build_runner(experiment, net, distillation, stage=lambda batch: batch, mix=None, device=_CPU)
    with experiment.placing("net"):
        batch = experiment.task.example(net, size, IMAGES)
        with placing_modules(experiment, net):
            output = runner.training_step(batch, _LATE)
        output.loss.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(output.loss):
            raise UserError(f"the loss of a batch of noise is {float(output.loss)}, expected a finite number.")
    shape = " x ".join(map(str, batch.image.shape))
    yield f"one batch of {shape} through net, loss and backward: loss {float(output.loss.detach()):.3f}"
    yield from (f"note: {line}" for line in start_lines(experiment, distillation)[1])
    if runner.loss_names:
        yield "its parts: " + ", ".join(f"{name} {float(output.shown()[name]):.3f}" for name in runner.loss_names)
    unused = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if unused and runner.trains_all_weights:
        yield f"note: {count(len(unused), 'parameter')} got no gradient, the first is {unused[0]}; freeze what is not used"
