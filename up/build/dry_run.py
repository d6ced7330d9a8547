"""Run the first step and the first evaluation on two images, before anything is created."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from up.build.data import Phase, section_of
from up.build.parts import RunParts
from up.config.contract import PartError
from up.data.bad_images import BadImages
from up.data.records import Batch, Dataset, SampleKey
from up.distill.section import has_labels
from up.engine.evaluate import Evaluation, Evaluator, evaluation_mode
from up.engine.parallel import unchanged_buffers
from up.engine.step import StepOutput
from up.errors import UserError
from up.models.net import Net
from up.models.norm import is_batch_norm
from up.registry import Registry
from up.seed import generator
from up.tasks.experiment import Experiment, net_kind
from up.text import some_of

_BATCH_SIZE = "dataset.train.batch_sampler.kwargs.batch_size"
_TOO_SMALL = ("Kernel size can't be greater than actual input size", "Output size is too small")  # of convolutions, of pooling


def first_batch(experiment: Experiment, source: Phase, data: Dataset, on_bad: Callable[[str], object] | None = None) -> Batch:
    """Collate the first image of a data set and the last: batch normalisation needs more than one.

    ``on_bad`` is called with an image that is replaced (``on_bad_image: skip``). Raises ``BadImage`` for an unreadable image
    otherwise, and ``ConfigError`` where these already exceed ``max_bad``.
    """
    indices = [0, len(data) - 1][: section_of(experiment, source).batch_sampler.kwargs.size]
    with experiment.placing(f"dataset.{source}.dataset.kwargs.transformer"):
        batch = experiment.task.collate([data[SampleKey(0, index)] for index in indices])
    with experiment.placing(f"dataset.{source}.dataset.kwargs.max_bad"):
        BadImages(max_bad=data.max_bad, total=len(data), on_new=on_bad).add(batch)
    return batch


def dry_run(experiment: Experiment, parts: RunParts) -> StepOutput | None:
    """Run the first step and the first evaluation on two images; return the output of the step, None without labels.

    Raises ``ConfigError``; nothing is created or changed.
    """
    output = None
    train = first_batch(experiment, "train", parts.train_data)
    test = first_batch(experiment, "test", parts.test_data) if parts.evaluation and parts.test_data is not None else None
    with placing_modules(experiment, parts.net), traceless(parts.net):
        prepared = parts.stage(train)
        if parts.mix is not None:
            prepared = parts.mix(prepared, generator(experiment.config.runtime.random_seed))
            if not isinstance(prepared, dict) or "image" not in prepared:
                what = f"the batch function returned a {type(prepared).__name__}, expected the batch with `image` and `gt`."
                raise experiment.error(f"{what} Add `return batch`.", key="dataset.train.dataloader.kwargs.batch_fn.type")
            prepared = Batch(prepared)
        with parts.precision.autocast(), several_values(experiment, parts.net):
            if has_labels(experiment):
                output = experiment.task.loss(parts.net, prepared)
            else:
                parts.net(prepared)
    if parts.evaluation is not None and test is not None:
        evaluator, found = dry_run_evaluation(experiment, parts.net, test, parts.evaluation)
        if experiment.config.trainer.is_eval and parts.test_data is not None:
            names = experiment.task.metric_names(evaluator, found, parts.test_data)
            _expect_metrics(experiment, parts, names, evaluator.main_metric)
    return output


def _expect_metrics(experiment: Experiment, parts: RunParts, names: Sequence[str], main: str) -> None:
    """Raise ``ConfigError`` where the evaluations of the training lack the metrics by which checkpoints are compared."""
    trainer = experiment.config.trainer
    if not names:
        needing = {name: getattr(trainer, name) is not None for name in ("early_stopping", "keep_best")}
        needing["lr_scheduler"] = trainer.lr_scheduler is not None and trainer.lr_scheduler.type == "ReduceLROnPlateau"
        if any(needing.values()):
            what = "compares evaluations, but the images of dataset.test have no labels, so that there are no metrics"
            fix = "Name images with labels in dataset.test, or leave this out."
            raise experiment.error(f"{what}. {fix}", key=f"trainer.{max(needing, key=needing.__getitem__)}")
        return
    averaged = [f"ema_{name}" for name in names] if experiment.config.ema.enable else []
    with experiment.placing("trainer.early_stopping"):
        parts.stopping.require(dict.fromkeys([*names, *averaged]))
    if main not in names:
        expected = f"a metric that the images of dataset.test give: {some_of(names, 12)}"
        fix = "Name one of them, or add images: no checkpoint would be the best."
        with experiment.placing("dataset.test.dataset.kwargs.evaluator"):
            raise UserError(got=main, expected=expected, key="cmp_key", fix=fix)


def dry_run_evaluation(experiment: Experiment, net: Net, batch: Batch, evaluation: Evaluation) -> tuple[Evaluator, list[str]]:
    """Run a batch through the net and an evaluator, and return the evaluator and the names of its metrics.

    Raises ``ConfigError`` for settings that do not fit the net or the labels.
    """
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
    return evaluator, [*metrics]


@contextmanager
def placing_modules(experiment: Experiment, net: Net) -> Iterator[None]:
    """Place errors of the block at the module of the net that was running; check the records of plug-in modules."""
    running = ["net"]

    def begin(place: str) -> Callable[..., None]:
        return lambda module, inputs: running.__setitem__(0, place)

    def end(place: str, registry: Registry, *, is_plugin: bool) -> Callable[..., None]:
        def check(module: nn.Module, inputs: object, returned: object) -> None:
            problem = registry.contract.return_problem(module, returned) if is_plugin else None
            experiment.raise_if_any([] if problem is None else [replace(problem, key=f"{place}.type")])
            if isinstance(returned, Mapping):  # otherwise the net raises, and this module is at fault
                running[0] = "net"

        return check

    handles = []
    for index, entry in enumerate(experiment.config.net):
        if entry.type != "self" and entry.name in net.module_names:
            place, registry = f"net.{index}", experiment.tables[net_kind(experiment, entry)]
            handles.append(net[entry.name].register_forward_pre_hook(begin(place)))
            handles.append(net[entry.name].register_forward_hook(end(place, registry, is_plugin=entry.type in registry.plugins)))
    try:
        with _explaining_small_images():
            yield
    except UserError as error:
        with experiment.placing(running[0]):
            raise error
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _explaining_small_images() -> Iterator[None]:
    """Raise ``UserError`` if a kernel of the net is larger than the map that it gets."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _TOO_SMALL):
            raise
        fix = "Use larger images (`size` of the transforms), or a net that reduces them less."
        raise UserError(f"the images are too small for this net: torch reports {str(error).rstrip('.')!r}", fix=fix) from error


@contextmanager
def several_values(experiment: Experiment, net: nn.Module) -> Iterator[None]:
    """Raise ``ConfigError`` if a BatchNorm gets one value for each channel in the block: one value has no variance."""

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training and inputs[0].numel() == inputs[0].shape[1]:
            what = "got 1, and a BatchNorm of this net cannot train on one image: its map has only one position."
            raise experiment.error(f"{what} Set 2 or more, or train with larger images.", key=_BATCH_SIZE)

    handles = [module.register_forward_pre_hook(check) for module in net.modules() if is_batch_norm(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def traceless(net: nn.Module) -> Iterator[None]:
    """Run the block without gradients, without compiling, and without a change of running statistics."""
    with unchanged_buffers(net), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield
