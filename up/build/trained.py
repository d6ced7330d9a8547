"""A trained network out of its checkpoint: for evaluation, prediction and export."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from up.distributed import group
from up.build.data import build_evaluation, facts_of_train, notes_on
from up.build.network import build_net, device_of, on_device, precision_of
from up.schema.named_files import missing_at
from up.errors import UserError
from up.tasks.experiment import Experiment
from up.files import BEST, LATEST, named_checkpoint
from up.models.net import Net
from up.models.weight_files import is_of_timm
from up.models.weights import LoadReport, load_weights, read_state
from up.engine.ema import NoEma
from up.engine.folder import open_run_folder
from up.tracking.log import LOGGER
from up.distributed.failures import join_group, local_phase, together

# Weights that are served are those that were trained: a head of another width would be noise.
NO_NEW_HEADS: tuple[str, ...] = ()

NO_WEIGHTS = (
    "there is no checkpoint and saver.pretrain_model is not set, so these predictions are those of random weights. "
    "Name a checkpoint with --ckpt FILE."
)


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode on a device, and what its checkpoint says of it."""

    net: Net
    checkpoint: Path
    class_names: list[str] | None
    report: LoadReport
    device: torch.device


def find_checkpoint(experiment: Experiment, named: Path | None) -> Path:
    """The checkpoint named, else the run's best, else its latest, else ``saver.resume_model`` or ``pretrain_model``."""
    if named is not None:
        return named_checkpoint(named)
    saver = experiment.config.saver
    for path in (experiment.folder / BEST, experiment.folder / LATEST, saver.resume_model, saver.pretrain_model):
        if path is not None and named_checkpoint(path).is_file():
            return named_checkpoint(path)
    for key, file in (("saver.resume_model", saver.resume_model), ("saver.pretrain_model", saver.pretrain_model)):
        if file is not None and not is_of_timm(file):
            experiment.raise_if_any(missing_at(key, file))
    raise UserError(f"{experiment.folder}: holds no {BEST} or {LATEST}. Train first, or name a checkpoint with --ckpt FILE.")


def load_trained(experiment: Experiment, checkpoint: Path | None, *, ema: bool = True) -> Trained:
    """As ``load_net``, on the device of the configuration, joined to the other processes and compiled where asked for."""
    device = join(experiment)
    with together():
        trained = load_net(experiment, checkpoint, ema=ema)
    on_device(experiment, trained.net, device)
    return replace(trained, device=device)


def join(experiment: Experiment) -> torch.device:
    """Join the other processes; returns the device of this one."""
    runtime = experiment.config.runtime
    with local_phase():
        device = device_of(experiment)
    join_group(device, timeout_s=runtime.dist.timeout, backend=runtime.dist.backend)
    return device


def load_net(
    experiment: Experiment, checkpoint: Path | None, *, ema: bool = True, known: Mapping[str, Any] | None = None
) -> Trained:
    """Build the net of the configuration and fill it; the averaged weights where the checkpoint has them and ``ema``.

    It is on the CPU, in evaluation mode, as it was built. ``known`` are facts of the data, where they are there.
    """
    path = find_checkpoint(experiment, checkpoint)
    weights = read_state(path)
    names = list(weights.class_names) if weights.class_names else None
    facts = facts_of(experiment, names, weights.tensors(prefer_ema=ema))
    net = build_net(experiment, {**facts, **(known or {})})
    report = load_weights(net, weights, prefer_ema=ema, heads=NO_NEW_HEADS)
    net.eval()
    return Trained(net, path, names, report, torch.device("cpu"))


def facts_of(experiment: Experiment, class_names: list[Any] | None, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a net may want to know of data that are not there: how many classes, each as common as the others.

    Without names, the classifiers in the checkpoint's ``tensors`` tell. The counts only weigh losses (``training_counts``).
    """
    if class_names and isinstance(class_names[0], str):
        return {"num_classes": len(class_names), "class_counts": [1] * len(class_names)}
    net = experiment.config.net
    written = [module.kwargs["num_classes"] for module in net if module.kwargs.get("num_classes") is not None]
    found = [] if written else [width for module in net for width in _widths(module.name, tensors)]
    if len(found) > 1:
        return {"num_classes": found}
    facts = {"num_classes": found[0]} if found else {}
    single = [classes for classes in (*written, *found) if isinstance(classes, int)]
    return {**facts, "class_counts": [1] * single[-1]} if single else facts


def _widths(name: str, tensors: Mapping[str, Tensor]) -> list[int]:
    """The outputs of the classifiers of the module ``name``, one or a list of them."""
    pattern = re.compile(rf"{re.escape(name)}\.classifier\.(\d+\.)?weight")
    return [len(tensor) for key, tensor in tensors.items() if pattern.fullmatch(key)]


def training_counts(experiment: Experiment) -> dict[str, Any] | None:
    """``class_counts`` of the training data where a loss is weighed by them; None where it is and the data are not here."""
    if "'class_weights': 'balanced'" not in str([module.kwargs for module in experiment.config.net]):
        return {}
    facts = facts_of_train(experiment)
    return {"class_counts": facts["class_counts"]} if "class_counts" in facts else None


def evaluate_checkpoint(
    experiment: Experiment, checkpoint: Path | None, out: Path | None
) -> tuple[dict[str, float], list[Path], LoadReport | None]:
    """Metrics in the unit of the task, the reports written, and how the checkpoint was read; None for random weights."""
    device = join(experiment)
    with together():
        counts = training_counts(experiment)
        net, facts, report = net_to_evaluate(experiment, checkpoint, counts)
    on_device(experiment, net, device)
    folder = out or Path(experiment.config.saver.results_dir or experiment.folder / "results")
    with together():
        evaluation, dataset = build_evaluation(experiment, facts, device, precision_of(experiment, device))
        if group.is_main():
            open_run_folder(folder)
    for note in notes_on(dataset) if group.is_main() else ():
        LOGGER.warning(note)
    results = experiment.task.result_stream(dataset, folder, experiment.config.saver.memory_friendly)
    evaluation = replace(evaluation, on_outputs=results)
    metrics, served = evaluation(net, NoEma())
    if counts is None and group.is_main():
        warnings.warn(
            "the loss weighs all classes alike: class_weights: balanced counts the images of dataset.train, which is not here",
            stacklevel=2,
        )
    reports: list[Path] = []
    if group.is_main():
        reports = experiment.task.write_reports(served, folder, dataset, experiment.config.saver.save_result)
    return metrics, reports, report


def net_to_evaluate(
    experiment: Experiment, checkpoint: Path | None, counts: Mapping[str, Any] | None
) -> tuple[Net, dict[str, Any], LoadReport | None]:
    """The net in evaluation mode, what its checkpoint says of the classes, and how it was read; None for random weights."""
    if checkpoint is None and tries_out(experiment):
        return build_net(experiment, facts_of(experiment, None, {})).eval(), {}, None
    trained = load_net(experiment, checkpoint, known=counts)
    names = trained.class_names
    facts = {"class_names": names} if names and isinstance(names[0], str) else {}  # those of several heads are the evaluator's
    return trained.net, facts, trained.report


def tries_out(experiment: Experiment) -> bool:
    """Whether random weights may serve: there are no others, none are named, and images without labels measure nothing."""
    saver, test = experiment.config.saver, experiment.config.dataset.test
    if test is None or test.dataset.kwargs.get("meta_type") != "inference_only" or saver.resume_model or saver.pretrain_model:
        return False
    return not any((experiment.folder / name).is_file() for name in (BEST, LATEST))
