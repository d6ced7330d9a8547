"""A configuration proved without training: its files, and one batch of noise through net, loss and backward on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from up.assembly.data import build_dataset, build_transforms, input_size_of, train_batches
from up.assembly.network import build_net
from up.assembly.training import optimizer_of, timetable
from up.config.decode import missing_for_training
from up.data.records import SampleKey
from up.errors import UserError
from up.experiment import Experiment, missing_files
from up.models.net import model_summary
from up.text import count, si

IMAGES = 2  # batch normalisation needs more than one


def prove(experiment: Experiment, *, files: bool) -> Iterator[str]:
    """Lines that say what was proved. Raises ``UserError`` for the first thing that does not hold."""
    config, plugin = experiment.config, experiment.plugin
    for note in experiment.decoded.notes:
        yield f"note: {note}"
    facts = {}
    if files:
        experiment.refuse([*missing_for_training(config), *missing_files(experiment)])
        train = build_dataset(experiment, "train")
        facts = dict(plugin.data_facts(train))
        batches = train_batches(experiment, train)
        times = timetable(experiment, batches.updates_per_epoch)
        yield f"train: {count(len(train), 'image')}, {count(times.updates_per_epoch, 'update')} an epoch, {times.total:,} in all"
        first = train[SampleKey(0, 0)]
        yield f"first training sample: {tuple(first.image.shape)}"
        if config.dataset.test is not None:
            test = build_dataset(experiment, "test", plugin.later_data_facts(train))
            yield f"test: {count(len(test), 'image')}; first sample: {tuple(test[SampleKey(0, 0)].image.shape)}"
    else:
        for source in ("train", "test"):
            build_transforms(experiment, source)
    size = input_size_of(experiment)
    net = build_net(experiment, facts).train()
    total = model_summary(net)[-1]
    yield f"net: {si(total.parameters)} parameters, {si(total.trainable)} of them trainable"
    if config.trainer.optimizer is not None:
        optimizer_of(experiment, net)
    output = plugin.loss_of(net, plugin.example_batch(net, size, IMAGES))
    output.loss.backward()  # type: ignore[no-untyped-call]
    if not torch.isfinite(output.loss):
        raise UserError(f"{experiment.path}: the loss of a batch of noise is {float(output.loss)}. Expected a finite number.")
    shape = f"{IMAGES} x 3 x {size[0]} x {size[1]}"
    yield f"one batch of {shape} through net, loss and backward: loss {float(output.loss.detach()):.3f}"
    unused = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if unused:
        yield f"note: {count(len(unused), 'parameter')} got no gradient, the first is {unused[0]}; freeze what is not used"
