"""A configuration proved without training: its files, and one batch of noise through net, loss and backward on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from up.assembly.data import build_dataset, build_reader, build_transforms, input_size_of, train_batches
from up.assembly.distillation import Teaching, runner_of, teaching_of, told_of
from up.assembly.network import build_net
from up.assembly.training import build_hooks, optimizer_of, schedule_of, timetable
from up.config.decode import missing_for_training
from up.data.records import SampleKey
from up.errors import UserError
from up.experiment import Experiment, missing_files, net_table
from up.models.net import Net, model_summary
from up.text import count, si

IMAGES = 2  # batch normalisation needs more than one
_UNSEEN = 1000  # updates an epoch and images an update, where there are no data to tell
_CLASSES = 10  # the same of classes
_LATE = 10**9  # an update after every warm-up


def prove(experiment: Experiment, *, files: bool) -> Iterator[str]:
    """Lines that say what was proved. Raises ``UserError`` for the first thing that does not hold; creates nothing."""
    for note in experiment.decoded.notes:
        yield f"note: {note}"
    facts = assumed_facts(experiment)
    updates, images = _UNSEEN, _UNSEEN
    if files:
        experiment.refuse([*missing_for_training(experiment.config), *missing_files(experiment)])
        train = build_dataset(experiment, "train")
        facts = dict(experiment.plugin.data_facts(train))
        batches = train_batches(experiment, train)
        updates, images = batches.updates_per_epoch, batches.global_batch_size
        total = timetable(experiment, updates).total
        yield f"train: {count(len(train), 'image')}, {count(updates, 'update')} an epoch, {total:,} in all"
        yield f"first training sample: {tuple(train[SampleKey(0, 0)].image.shape)}"
        if experiment.config.dataset.test is not None:
            test = build_dataset(experiment, "test", experiment.plugin.later_data_facts(train))
            yield f"test: {count(len(test), 'image')}; first sample: {tuple(test[SampleKey(0, 0)].image.shape)}"
    prove_parts(experiment, facts)
    net = build_net(experiment, facts).train()
    teaching = teaching_of(experiment, net, facts, experiment.plugin.class_names(train) if files else None, files=files)
    total_row = model_summary(net)[-1]
    yield f"net: {si(total_row.parameters)} parameters, {si(total_row.trainable)} of them trainable"
    if experiment.config.trainer.optimizer is not None:
        schedule_of(experiment, updates, timetable(experiment, updates).total or updates, images)
        optimizer_of(experiment, net)
    yield from prove_backward(experiment, net, teaching)


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
    build_hooks(experiment)


def prove_backward(experiment: Experiment, net: Net, teaching: Teaching | None) -> Iterator[str]:
    """One batch of noise through net, teachers, losses and backward."""
    size = input_size_of(experiment)
    runner = runner_of(experiment, net, teaching, stage=lambda batch: batch, mix=None, device=torch.device("cpu"))
    with experiment.placing("net"):
        output = runner.training_step(experiment.plugin.example_batch(net, size, IMAGES), _LATE)
        output.loss.backward()  # type: ignore[no-untyped-call]
        if not torch.isfinite(output.loss):
            raise UserError(f"the loss of a batch of noise is {float(output.loss)}, expected a finite number.")
    shape = f"{IMAGES} x 3 x {size[0]} x {size[1]}"
    yield f"one batch of {shape} through net, loss and backward: loss {float(output.loss.detach()):.3f}"
    yield from (f"note: {line}" for line in told_of(experiment, teaching)[1])
    if teaching is not None:
        names = [lesson.name for lesson in teaching.mimic.lessons]
        yield "its parts: " + ", ".join(f"{name} {float(output.shown()[name]):.3f}" for name in ("task_loss", *names))
    unused = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if unused:
        yield f"note: {count(len(unused), 'parameter')} got no gradient, the first is {unused[0]}; freeze what is not used"
