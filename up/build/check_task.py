"""Check how the task of a plug-in behaves: its data, batches, loss and evaluator, each on a few images. One line for a mistake."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from numbers import Real
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from up.build.data import channels_of, input_spec_of
from up.build.dry_run import dry_run, placing_modules, traceless
from up.build.parts import RunParts
from up.bundle.answers.answer import axes_fit
from up.bundle.session import EXTRA
from up.config.contract import called
from up.data.collate import to_device
from up.data.records import Batch, Dataset, Sample, SampleKey
from up.engine.evaluate import EVALUATOR_CONTRACT, Evaluation, Evaluator, evaluation_mode
from up.engine.step import BatchStage, StepOutput
from up.errors import Fields, UserError
from up.models.net import Net
from up.tasks.declaration import error_at, is_ours, served_by
from up.tasks.experiment import Experiment
from up.tasks.served import Served
from up.tasks.task import AnyTask, InputSpec
from up.text import count, some_of

_IMAGES = 4
_TOLERANCE = 1e-4
_LIBRARIES = ("torch", "timm", "torchvision")


def _error(owner: object, member: str, what: str, **fields: Unpack[Fields]) -> UserError:
    """Make an error of a plug-in's object, at the line of its ``member``, or of its class if it inherits the member from us."""
    kind = type(owner)
    code = getattr(kind, member, kind)
    code = kind if getattr(code, "__module__", "up").partition(".")[0] == "up" else code
    return error_at(code, f"{called(kind)}{'' if member.startswith('[') else '.'}{member}{what}", **fields)


def check_and_dry_run(experiment: Experiment, parts: RunParts) -> RunParts:
    """Check a plug-in's task, then run the first step and the first evaluation on two images. Raises ``UserError``.

    Returns ``parts`` with what the first step showed.
    """
    check_task(experiment, parts)
    output = dry_run(experiment, parts)
    return replace(parts, loss_has_terms=output is not None and bool(output.terms))


def check_task(experiment: Experiment, parts: RunParts) -> None:
    """Raise ``UserError`` for the first mistake in how a plug-in's task behaves on a few images; nothing is trained or written."""
    task, net = experiment.task, parts.net
    if is_ours(task):
        return
    with placing_modules(experiment, net), traceless(net):
        samples = check_data(parts.train_data)
        batch = parts.stage(check_collate(task, samples))
        spec = input_spec_of(experiment)
        if spec is not None:
            check_example(task, net, spec, batch)
        if len(samples) > 1:
            check_loss(task, net, parts.stage, samples)
        if parts.test_data is not None and parts.evaluation is not None:
            tested = check_data(parts.test_data)
            check_evaluator(task, net, parts.evaluation, tested)
            if task.is_served:
                check_served(task, net, parts.class_names, parts.evaluation, tested)


def check_data(data: Dataset) -> list[Sample]:
    """Read up to four samples of ``data``, evenly spread. Raises ``UserError`` if a sample depends on more than its key."""
    size = len(data)
    keys = [SampleKey(0, index) for index in sorted({number * (size - 1) // (_IMAGES - 1) for number in range(_IMAGES)})]
    samples = [data[key] for key in keys]
    for sample in samples:
        _check_sample(data, sample)
    torch.rand(3)  # other draws in between
    for key, sample in zip(reversed(keys), reversed(samples), strict=True):
        different = _difference(sample, data[key])
        if different is not None:
            fix = "Draw all randomness after seeding with key.seed(...), and keep nothing between samples."
            raise _error(data, "__getitem__", f"[{key}] gives another {different!r} when it is read again", fix=fix)
    return samples


def _check_sample(data: Dataset, sample: object) -> None:
    if not isinstance(sample, dict):
        raise _error(data, "[key]", f" is a {type(sample).__name__}", expected="a Sample(image=…, filename=…, …)")
    for field in ("image", "filename"):
        if field not in sample:
            raise _error(data, "[key]", f" has no {field!r}, only {some_of(sample)}", fix="Add it to the Sample.")
    image = sample["image"]
    if not isinstance(image, Tensor) or image.ndim != 3:
        got = f"{str(image.dtype)} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise _error(data, "[key]", f".image is {got}", expected="a tensor (channels, H, W), uint8 or float")


def _difference(one: object, other: object) -> str | None:
    """Return the first field in which two samples differ, "" for values that are not mappings; None if they are equal."""
    if isinstance(one, Tensor | np.ndarray):
        is_same = type(one) is type(other) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return None if is_same and bool(_equal(one, other).all()) else ""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return next((str(key) for key in one if _difference(one[key], other[key]) is not None), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return next(("" for left, right in zip(one, other, strict=True) if _difference(left, right) is not None), None)
    return None if bool(_equal(one, other)) else ""


def _equal(one: Any, other: Any) -> Any:
    """Compare numbers, arrays or tensors by element; NaN, by which data say that a target is missing, is equal to NaN."""
    return (one == other) | ((one != one) & (other != other))


def check_collate(task: AnyTask, samples: Sequence[Sample]) -> Batch:
    """Collate ``samples`` into a batch. Raises ``UserError`` unless each entry has one value per sample."""
    try:
        batch = task.collate(samples)
    except UserError as error:
        of_several_sizes = len({sample["image"].shape for sample in samples}) > 1
        fix = "Or return collate(samples, one_size=False), and pad the images in the net." if of_several_sizes else ""
        raise _error(task, "collate", f": {error}", fix=fix) from error
    if not isinstance(batch, Batch):
        got = f" returned a {type(batch).__name__}"
        raise _error(task, "collate", got, expected="a Batch", fix="Write Batch(image=…, …).")
    for field in ("image", "filename"):
        if field not in batch:
            raise _error(task, "collate", f" returned a batch without {field!r}, only {some_of(batch)}")
    for field, value in batch.items():
        if not isinstance(value, Tensor | list) or (isinstance(value, Tensor) and not value.ndim) or len(value) != len(samples):
            got = f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            expected = f"a tensor or a list of {len(samples)}, one for each sample"
            raise _error(task, "collate", f": {field!r} of a batch is {got}", expected=expected)
    return batch


def check_example(task: AnyTask, net: Net, spec: InputSpec, batch: Batch) -> None:
    """Raise ``UserError`` for a batch of noise of another form than ``batch``, a prepared one of the data."""
    if not isinstance(spec, InputSpec):
        raise _error(task, "input_spec", f" returned {spec!r}", expected="an InputSpec or None")
    made = task.example(net, spec.size, 2)
    missing = [field for field in batch if field not in made and field not in ("index", "seed", "bad")]
    if missing:
        raise _error(task, "example", f" makes a batch without {missing[0]!r}, which batches of the data have")
    if tuple(made["image"].shape[-2:]) != tuple(spec.size) or len(made["image"]) != 2:
        expected = f"(2, channels, {spec.size[0]}, {spec.size[1]})"
        raise _error(task, "example", f": image is {tuple(made['image'].shape)}", expected=expected)
    for field, value in batch.items():
        noise = made.get(field)
        if isinstance(value, Tensor) and isinstance(noise, Tensor) and (value.dtype, value.ndim) != (noise.dtype, noise.ndim):
            expected = f"{value.dtype} of {value.ndim} dimensions, as in the data"
            raise _error(task, "example", f": {field!r} is {noise.dtype} of {noise.ndim} dimensions", expected=expected)
    with _without_statistics(net):  # an error is one of the plug-in's code; several ranks would meet it after they joined
        task.loss(net, to_device(made, batch["image"][0].device))


def check_loss(task: AnyTask, net: Net, stage: BatchStage, samples: Sequence[Sample]) -> None:
    """Raise ``UserError`` unless the loss of a batch is the weighted mean of the losses of its halves.

    A loss that draws random numbers, as for a dropout or a sample of anchors, is another one each time: it is not compared.
    """
    halves = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    fewest = min(samples, key=_number_of_targets)  # twice, so that tensors which differ elsewhere are stacked
    with _without_statistics(net):
        (output, _), *parts, _ = [_loss_of(task, net, stage, part) for part in (samples, *halves, [fewest, fewest])]
    total = sum(weight for _, weight in parts)
    if output.terms or not total or not task.loss_is_mean:
        return
    whole, mean = float(output.loss), sum(float(part.loss) * weight for part, weight in parts) / total
    if not _is_close(whole, mean):
        with _without_statistics(net):
            again, _ = _loss_of(task, net, stage, samples)
        if not _is_close(whole, float(again.loss)):
            return
        what = f": the loss of {len(samples)} images is {whole:.6g}, the weighted mean of its halves {mean:.6g}"
        fix = "Take the mean over what StepOutput.weight counts (None: images), or set loss_is_mean = False."
        raise _error(task, "loss", f"{what}: training on two ranks would differ from training on one", fix=fix)


def _is_close(whole: float, other: float) -> bool:
    return abs(whole - other) <= _TOLERANCE * max(1.0, abs(whole))


def _loss_of(task: AnyTask, net: Net, stage: BatchStage, samples: Sequence[Sample]) -> tuple[StepOutput, float]:
    """Compute the loss of a batch and its weight. Raises ``UserError`` for anything but finite numbers."""
    output = task.loss(net, stage(task.collate(samples)))
    if not isinstance(output, StepOutput):
        raise _error(task, "loss", f" returned a {type(output).__name__}", expected="a StepOutput")
    if not isinstance(output.loss, Tensor) or output.loss.ndim or not output.loss.is_floating_point():
        raise _error(task, "loss", ": the loss is not a scalar tensor", got=output.loss, fix="Write loss.mean().")
    if not output.loss.isfinite():
        what = f": the loss of {count(len(samples), 'image')} is {float(output.loss)}"
        raise _error(task, "loss", what, expected="a finite number, also for images without a target")
    weight = float(len(samples) if output.weight is None else output.weight)
    if weight < 0:
        raise _error(task, "loss", f": the weight is {weight:g}", expected="0 or more")
    return output, weight


def _number_of_targets(sample: Sample) -> int:
    return sum(value.numel() for field, value in sample.items() if field != "image" and isinstance(value, Tensor))


@contextmanager
def _without_statistics(net: nn.Module) -> Iterator[None]:
    """Batch normalisation and dropout of libraries as in evaluation, all else as in training."""
    before = {module: module.training for module in net.modules()}
    net.train()
    for module in net.modules():
        if type(module).__module__.partition(".")[0] in _LIBRARIES and type(module) is not nn.Sequential:
            module.training = False
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def check_evaluator(task: AnyTask, net: Net, evaluation: Evaluation, samples: Sequence[Sample]) -> None:
    """Raise ``UserError`` unless two ranks with half of the images each compute the metrics of one rank with all."""
    evaluator = evaluation.make_evaluator()
    problem = EVALUATOR_CONTRACT.object_problem(evaluator)
    if problem is not None:
        raise error_at(type(evaluator), problem.what, got=problem.got, expected=problem.expected, fix=problem.fix)
    if not isinstance(getattr(evaluator, "main_metric", None), str):
        raise _error(evaluator, "main_metric", "", expected="the name of the metric that chooses the best checkpoint")
    halves = [part for part in (samples[: len(samples) // 2], samples[len(samples) // 2 :]) if part]
    batches = []
    with evaluation_mode(net):
        for part in halves:
            prepared = evaluation.stage(task.collate(part))
            batches.append((net(prepared), prepared))
    alone = _metrics(evaluator, batches)
    if evaluator.main_metric not in alone:
        expected = f"a name that compute() returns: {some_of(alone)}"
        raise _error(evaluator, "main_metric", "", got=evaluator.main_metric, expected=expected)
    states = []
    for outputs, batch in batches:
        rank = evaluation.make_evaluator()
        rank.update(outputs, batch)
        states.append(_travelled(rank))
    merged = evaluation.make_evaluator()
    merged.merge(states)
    for name, value in merged.compute().items():
        if not math.isclose(value, alone[name], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) and not (
            math.isnan(value) and math.isnan(alone[name])
        ):
            what = f": {name} is {alone[name]:.6g} on one rank and {value:.6g} on two that merge their states"
            raise _error(evaluator, "merge", what, fix="Let state() hold sums and counts, and merge() add those of all ranks.")


def _metrics(evaluator: Evaluator, batches: Sequence[tuple[Mapping[str, object], Batch]]) -> dict[str, float]:
    for outputs, batch in batches:
        evaluator.update(outputs, batch)
    evaluator.merge([_travelled(evaluator)])
    metrics = evaluator.compute()
    if not isinstance(metrics, Mapping):
        raise _error(evaluator, "compute", f" returned a {type(metrics).__name__}", expected="a dict of numbers by name")
    for name, value in metrics.items():
        if not isinstance(value, Real):
            got = f": {name!r} is a {type(value).__name__}"
            raise _error(evaluator, "compute", got, expected="a number", fix="Write float(...).")
    return dict(metrics)


def _travelled(evaluator: Evaluator) -> object:
    """Pickle and unpickle a state, as sending it to another rank does."""
    try:
        return pickle.loads(pickle.dumps(copy.deepcopy(evaluator.state())))
    except Exception as error:  # whatever the state holds
        what = f" cannot be sent to other ranks ({error})"
        raise _error(evaluator, "state", what, fix="Return numbers, arrays and lists.") from error


def check_served(task: AnyTask, net: Net, class_names: list[str] | None, evaluation: Evaluation, samples: Sequence[Sample]) -> None:
    """Raise ``UserError`` unless the parts that ``serve`` returns match, and the evaluator reads the scores of its answer."""
    batch = evaluation.stage(task.collate(samples))
    if not isinstance(batch.image, Tensor):
        return
    with evaluation_mode(net):
        served = served_by(task, net, class_names, False)
        try:
            found = served.module(batch.image)
        except UserError as error:
            raise _error(task, "serve", f": {error}") from error
    tensors = [found] if isinstance(found, Tensor) else found
    if not isinstance(tensors, list | tuple) or [type(each) for each in tensors] != [Tensor] * len(served.outputs):
        got = ", ".join(type(each).__name__ for each in tensors) if isinstance(tensors, list | tuple) else type(found).__name__
        expected = f"{count(len(served.outputs), 'tensor')}, one for each of `outputs`"
        raise _error(task, "serve", f": the module returned {got}", expected=expected)
    for output, tensor in zip(served.outputs, tensors, strict=True):
        if len(tensor) != len(batch.image) or not axes_fit(["N", *tensor.shape[1:]], output.axes):
            what = f": {output.name!r} of {count(len(batch.image), 'image')} is {tuple(tensor.shape)}"
            raise _error(task, "serve", what, expected=f"the axes of its OutputSpec, {output.axes}")
    misfit = served.answer.misfit(served.outputs)
    if misfit is not None:
        raise _error(task, "serve", f": {type(served.answer).__name__} does not read its outputs: {misfit}")
    _check_scores(evaluation.make_evaluator(), served, tensors, batch)


def _check_scores(evaluator: Evaluator, served: Served, tensors: Sequence[Tensor], batch: Batch) -> None:
    """Raise ``UserError`` unless ``evaluator`` reads the scores that the answer computes, as when a package is evaluated."""
    outputs = {output.name: tensor.float().cpu().numpy() for output, tensor in zip(served.outputs, tensors, strict=True)}
    device = batch.image.device
    scores = {
        name: [torch.as_tensor(each, device=device) for each in value]
        if isinstance(value, list)
        else torch.as_tensor(value, device=device)
        for name, value in served.answer.to_scores(outputs).items()
    }
    try:
        evaluator.update(scores, batch)
    except KeyError as error:
        what = f" reads {error} of the outputs, but those of a package are {some_of(scores)}"
        fix = "Read names that are in the net's record and in answer.to_scores()."
        raise _error(evaluator, "update", what, fix=fix) from error


def check_export(experiment: Experiment, parts: RunParts) -> list[str]:
    """Notes of an export of a plug-in's untrained net. Raises ``UserError`` where torch cannot export what ``serve`` returns."""
    task, net, spec = experiment.task, parts.net, input_spec_of(experiment)
    if is_ours(task) or not task.is_served or spec is None:
        return []
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        return [f"whether to_onnx can export the net was not checked: {missing[0]} is not installed. {EXTRA}"]
    with evaluation_mode(net):
        served = served_by(task, net, parts.class_names, False)
        from up.deploy.onnx import export_graph  # a training exports nothing

        try:
            export_graph(served.module, (channels_of(experiment), *spec.size), served.outputs)
        except UserError as error:
            raise _error(task, "serve", f": {error}") from error
    return []
