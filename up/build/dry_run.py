"""The first update and the first evaluation, on two images, before anything is created."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from up.build.data import Phase, section_of
from up.build.parts import RunParts
from up.config.contract import PartError
from up.data.bad_images import BadImages
from up.data.records import Batch, Dataset, SampleKey
from up.engine.evaluate import Evaluation, evaluation_mode
from up.errors import Problem, UserError
from up.models.net import Net
from up.seed import generator
from up.tasks.experiment import Experiment, net_kind
from up.text import some_of

_IMAGES = 2  # batch normalisation needs more than one


def first_batch(experiment: Experiment, source: Phase, data: Dataset, on_bad: Callable[[str], object] | None = None) -> Batch:
    """The first image of a data set and its last, collated as a worker does it.

    ``on_bad`` gets an image that another one stands in for (``on_bad_image: skip``). Raises ``BadImage`` for one that cannot be
    read otherwise, and ``ConfigError`` where these are already more than ``max_bad``.
    """
    batch_size = section_of(experiment, source).batch_sampler.kwargs.batch_size
    indices = [0, len(data) - 1][: min(batch_size, _IMAGES)]
    with experiment.placing(f"dataset.{source}.dataset.kwargs.transformer"):
        batch = experiment.task.collate([data[SampleKey(0, index)] for index in indices])
    with experiment.placing(f"dataset.{source}.dataset.kwargs.max_bad"):
        BadImages(max_bad=data.max_bad, total=len(data), on_new=on_bad).add(batch)
    return batch


def dry_run(experiment: Experiment, parts: RunParts) -> None:
    """Run the first step and the first evaluation on two images. Raises ``ConfigError``; nothing is created or changed."""
    train = first_batch(experiment, "train", parts.train_data)
    test = first_batch(experiment, "test", parts.test_data) if parts.evaluation and parts.test_data is not None else None
    with placing_modules(experiment, parts.net), traceless(parts.net):
        prepared = parts.stage(train)
        if parts.mix is not None:
            prepared = _mixed(experiment, parts.mix(prepared, generator(experiment.config.runtime.random_seed)))
        with parts.precision.autocast():
            experiment.task.loss(parts.net, prepared)
    if parts.evaluation is not None and test is not None:
        dry_run_evaluation(experiment, parts.net, test, parts.evaluation)


def dry_run_evaluation(experiment: Experiment, net: Net, batch: Batch, evaluation: Evaluation) -> None:
    """A batch through the net and an evaluator. Raises ``ConfigError`` for settings that do not fit the net or the labels."""
    with placing_modules(experiment, net), traceless(net), evaluation_mode(net), evaluation.precision.autocast():
        prepared = evaluation.stage(batch)
        outputs = net(prepared)
    evaluator = evaluation.make_evaluator()
    with experiment.placing("dataset.test.dataset.kwargs.evaluator"):
        evaluator.update(outputs, prepared)
        evaluator.merge([evaluator.state()])
        metrics, name = evaluator.compute(), type(evaluator).__qualname__
        if not isinstance(metrics, Mapping):
            what = f"{name}.compute() returned a {type(metrics).__name__}, expected a dict of numbers by name."
            raise PartError(type(evaluator), what)
        if type(evaluator).__module__.partition(".")[0] != "up" and evaluator.main_metric not in metrics:
            what = f"{name}.main_metric: got {evaluator.main_metric!r}, expected a name that compute() returns: {some_of(metrics)}."
            raise PartError(type(evaluator), what)


def _mixed(experiment: Experiment, batch: object) -> Batch:
    if isinstance(batch, dict) and "image" in batch:
        return Batch(batch)
    what = f"the batch function returned a {type(batch).__name__}, expected the batch with `image` and `gt`. Add `return batch`."
    experiment.raise_if_any([Problem(what, key="dataset.train.dataloader.kwargs.batch_fn.type")])
    raise AssertionError("refused")


@contextmanager
def placing_modules(experiment: Experiment, net: Net) -> Iterator[None]:
    """Errors of the block get the place of the module of the net that was running; what plug-in modules return is checked."""
    running = ["net"]
    places = {entry.name: f"net.{index}" for index, entry in enumerate(experiment.config.net) if entry.type != "self"}
    tables = {entry.name: net_kind(experiment, entry) for entry in experiment.config.net if entry.type != "self"}
    own = {
        entry.name
        for entry in experiment.config.net
        if entry.name in tables and entry.type in experiment.tables[tables[entry.name]].plugins
    }

    def begins(name: str) -> Callable[..., None]:
        return lambda module, inputs: running.__setitem__(0, places[name])

    def ends(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: object, returned: object) -> None:
            problem = experiment.tables[tables[name]].contract.return_problem(module, returned) if name in own else None
            experiment.raise_if_any([replace(problem, key=f"{places[name]}.type")] if problem is not None else [])
            if isinstance(returned, Mapping):  # otherwise the net raises, and this is the module to blame
                running[0] = "net"

        return look

    names = [name for name in net.module_names if name in places]
    hooks = [net[name].register_forward_pre_hook(begins(name)) for name in names]
    hooks += [net[name].register_forward_hook(ends(name)) for name in names]
    try:
        yield
    except UserError as error:
        with experiment.placing(running[0]):
            raise error
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def traceless(net: nn.Module) -> Iterator[None]:
    """No gradients, no compiling for the sake of two images, and running statistics as they were."""
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])
