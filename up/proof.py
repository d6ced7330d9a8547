"""A configuration proved without training: its files, and one batch of noise through net, loss and backward on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from up.assembly.data import (
    build_dataset,
    build_evaluation,
    build_reader,
    build_transforms,
    device_side,
    input_size_of,
    notes_on,
    train_batches,
)
from up.assembly.distillation import Teaching, runner_of, teaching_of, told_of
from up.assembly.network import build_net, device_of, load_start_weights
from up.assembly.teacher_cache import with_cache
from up.assembly.training import build_hooks, optimizer_of, rate_line, schedule_of, timetable
from up.assembly.trial import first_batch, prove_hooks, try_evaluation, try_training
from up.config.decode import missing_for_training
from up.data.bad_images import BadImage
from up.data.records import Batch
from up.errors import UserError
from up.experiment import Experiment, missing_files, net_table
from up.models.net import Net, model_summary
from up.models.weight_files import is_of_timm
from up.runner.precision import Precision
from up.text import count, si

IMAGES = 2  # batch normalisation needs more than one
_UNSEEN = 1000  # updates an epoch and images an update, where there are no data to tell
_CLASSES = 10  # the same of classes
_LATE = 10**9  # an update after every warm-up
_SHOWN = 8  # classes in a line
_CPU = torch.device("cpu")
_FLOAT32 = Precision(mode=None, device=_CPU)


def prove(experiment: Experiment, *, files: bool) -> Iterator[str]:
    """Lines that say what was proved. Raises ``UserError`` for the first thing that does not hold; creates nothing."""
    for note in (*experiment.decoded.notes, *absent_device(experiment)):
        yield f"note: {note}"
    if files:
        experiment.refuse([*missing_for_training(experiment.config), *missing_files(experiment)])
        yield from prove_with_data(experiment)
        return
    facts = assumed_facts(experiment)
    prove_parts(experiment, facts)
    net = build_net(experiment, facts).train()
    if experiment.config.trainer.optimizer is not None:
        schedule_of(experiment, _UNSEEN, timetable(experiment, _UNSEEN).total or _UNSEEN, _UNSEEN)
    yield from prove_net(experiment, net, teaching_of(experiment, net, facts, None, files=False), None)


def prove_with_data(experiment: Experiment) -> Iterator[str]:
    """What ``train`` would make of the files, up to its first update and its first evaluation."""
    plugin = experiment.plugin
    train = build_dataset(experiment, "train")
    facts, names = dict(plugin.data_facts(train)), plugin.class_names(train)
    batches = train_batches(experiment, train)
    times = timetable(experiment, batches.updates_per_epoch)
    yield from (f"note: {note}" for note in notes_on(train))
    yield f"train: {count(len(train), 'image')}, {count(times.updates_per_epoch, 'update')} an epoch, {times.total:,} in all"
    yield from class_line(names, facts.get("class_counts"))
    schedule = schedule_of(experiment, times.updates_per_epoch, times.total, batches.global_batch_size)
    yield rate_line(experiment, schedule, times.total, batches.global_batch_size)
    mix, stage = device_side(experiment, train, facts, _CPU)
    batch = first_batch(experiment, "train", train)
    yield f"first training sample: {form_of(batch)}"
    evaluation = tested = None
    if experiment.config.dataset.test is not None:
        evaluation, test = build_evaluation(experiment, plugin.evaluation_facts(train), _CPU, _FLOAT32)
        tested = first_batch(experiment, "test", test)
        yield from (f"note: {note}" for note in notes_on(test))
        yield f"test: {count(len(test), 'image')}; first sample: {form_of(tested)}"
    prove_parts(experiment, facts)
    net = build_net(experiment, facts).train()
    if not is_of_timm(experiment.config.saver.pretrain_model or ""):  # those may be gigabytes to fetch
        yield from load_start_weights(experiment, net, names)
    teaching = teaching_of(experiment, net, facts, names)
    if teaching is not None:
        known = len(teaching.lines)
        teaching = with_cache(experiment, teaching, train, updates_per_epoch=times.updates_per_epoch, updates=times.total)
        yield from teaching.lines[known:]
    if not isinstance(batch, BadImage):
        try_training(experiment, net, batch, stage=stage, mix=mix, precision=_FLOAT32)
    if evaluation is not None and tested is not None and not isinstance(tested, BadImage):
        try_evaluation(experiment, net, tested, evaluation)
    yield from prove_net(experiment, net, teaching, names)


def prove_net(experiment: Experiment, net: Net, teaching: Teaching | None, names: list[str] | None) -> Iterator[str]:
    """Optimizer, hooks, and a batch of noise through net, loss and backward."""
    total_row = model_summary(net)[-1]
    yield f"net: {si(total_row.parameters)} parameters, {si(total_row.trainable)} of them trainable"
    prove_hooks(experiment, build_hooks(experiment)[0], net, names)
    if experiment.config.trainer.optimizer is not None:
        optimizer_of(experiment, net)
    yield from prove_backward(experiment, net, teaching)


def absent_device(experiment: Experiment) -> Iterator[str]:
    """That ``runtime.device`` is not on this machine, which may be another than that which trains."""
    try:
        device_of(experiment)
    except UserError as error:
        yield str(error)


def form_of(batch: Batch | BadImage) -> str:
    """The shape of a sample, or why there is none."""
    return str(batch) if isinstance(batch, BadImage) else str(tuple(batch.image.shape[1:]))


def class_line(names: list[str] | None, counts: list[int] | None) -> Iterator[str]:
    """How many classes there are, and the commonest and the rarest of them."""
    if counts is None:
        return
    commonest_first = sorted(range(len(counts)), key=lambda label: -counts[label])
    shown = [f"{names[label] if names else label} {counts[label]:,}" for label in commonest_first]
    listed = ", ".join(shown) if len(shown) <= _SHOWN else f"{', '.join(shown[: _SHOWN - 1])}, … {shown[-1]}"
    yield f"{count(len(counts), 'class')}; images of each: {listed}"


def assumed_facts(experiment: Experiment) -> dict[str, Any]:
    """What stands in for the data where they are not looked at: a number of classes, if the file leaves it to them."""
    heads = [module for module in experiment.config.net if net_table(experiment.tables, module) == "head"]
    return {"num_classes": _CLASSES} if any("num_classes" not in head.kwargs for head in heads) else {}


def prove_parts(experiment: Experiment, facts: Mapping[str, Any]) -> None:
    """Build, and throw away, what a run would build besides the data and the net."""
    sources: tuple[Literal["train", "test"], ...] = ("train", "test")
    for source in sources:
        section = getattr(experiment.config.dataset, source)
        if section is not None and "image_reader" in section.dataset.kwargs:
            reader, transforms = build_reader(experiment, source), build_transforms(experiment, source)
            with experiment.placing(f"dataset.{source}.dataset.kwargs.transformer"):
                experiment.plugin.pipeline(reader, transforms)
    train = experiment.config.dataset.train
    if train is not None and train.dataloader.kwargs.batch_fn is not None:
        place = "dataset.train.dataloader.kwargs.batch_fn"
        experiment.build(train.dataloader.kwargs.batch_fn, "batch_fn", facts, place)


def prove_backward(experiment: Experiment, net: Net, teaching: Teaching | None) -> Iterator[str]:
    """One batch of noise through net, teachers, losses and backward."""
    size = input_size_of(experiment)
    runner = runner_of(experiment, net, teaching, stage=lambda batch: batch, mix=None, device=_CPU)
    with experiment.placing("net"):
        batch = experiment.plugin.example_batch(net, size, IMAGES)
        output = runner.training_step(batch, _LATE)
        output.loss.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(output.loss):
            raise UserError(f"the loss of a batch of noise is {float(output.loss)}, expected a finite number.")
    shape = " x ".join(map(str, batch.image.shape))
    yield f"one batch of {shape} through net, loss and backward: loss {float(output.loss.detach()):.3f}"
    yield from (f"note: {line}" for line in told_of(experiment, teaching)[1])
    if teaching is not None:
        names = [lesson.name for lesson in teaching.mimic.lessons]
        yield "its parts: " + ", ".join(f"{name} {float(output.shown()[name]):.3f}" for name in ("task_loss", *names))
    unused = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if unused:
        yield f"note: {count(len(unused), 'parameter')} got no gradient, the first is {unused[0]}; freeze what is not used"
