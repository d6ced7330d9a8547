"""A trained network out of its checkpoint: for evaluation, prediction and export."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from up.build.data import build_evaluation, derived_from_train, notes_on
from up.build.network import build_net, precision_of, select_device, synchronized, to_device
from up.config.parts import DerivedArguments
from up.distributed import group
from up.distributed.failures import join_group, local_phase, on_all_ranks
from up.engine.ema import NoEma
from up.engine.folder import open_run_folder
from up.errors import UserError
from up.files import BEST, LATEST, named_checkpoint
from up.models.net import Net
from up.models.weight_files import is_of_timm
from up.models.weights import LoadReport, load_weights, read_state
from up.schema.named_files import missing_at
from up.tasks.experiment import Experiment
from up.text import some_of
from up.tracking.log import LOGGER

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
    with local_phase():
        device = select_device(experiment)
        trained = load_net(experiment, checkpoint, ema=ema)
        to_device(experiment, trained.net, device)
    join(experiment, device)
    synchronized(experiment, trained.net)
    return replace(trained, device=device)


def join(experiment: Experiment, device: torch.device) -> None:
    """Join the other processes."""
    dist = experiment.config.runtime.dist
    join_group(device, timeout_s=dist.timeout, backend=dist.backend)


def load_net(
    experiment: Experiment, checkpoint: Path | None, *, ema: bool = True, known: DerivedArguments | None = None
) -> Trained:
    """Build the net of the configuration and fill it; the averaged weights where the checkpoint has them and ``ema``.

    It is on the CPU, in evaluation mode, as it was built. ``known`` are arguments derived from the data, where they are there.
    """
    path = find_checkpoint(experiment, checkpoint)
    weights = read_state(path)
    names = list(weights.class_names) if weights.class_names else None
    derived = experiment.task.derived_from_weights(weights, experiment.config.net)
    net = build_net(experiment, {**derived, **(known or {})})
    report = load_weights(net, weights, prefer_ema=ema, heads=NO_NEW_HEADS)
    net.eval()
    return Trained(net, path, names, report, torch.device("cpu"))


def derived_from_data_only(experiment: Experiment) -> DerivedArguments | None:
    """Derived arguments that no checkpoint tells, from the training data; None where there are some and the data are not here."""
    names = experiment.task.derived_from_data_only(experiment.config.net)
    known = derived_from_train(experiment) if names else {}
    return {name: known[name] for name in names} if known.keys() >= {*names} else None


def evaluate_checkpoint(
    experiment: Experiment, checkpoint: Path | None, out: Path | None
) -> tuple[dict[str, float], list[Path], LoadReport | None]:
    """Metrics in the unit of the task, the reports written, and how the checkpoint was read; None for random weights."""
    folder = out or Path(experiment.config.saver.results_dir or experiment.folder / "results")
    with local_phase():
        device = select_device(experiment)
        known = derived_from_data_only(experiment)
        net, derived, report = net_to_evaluate(experiment, checkpoint, known)
        to_device(experiment, net, device)
        evaluation, dataset = build_evaluation(experiment, derived, device, precision_of(experiment, device), folder)
    join(experiment, device)
    synchronized(experiment, net)
    with on_all_ranks():
        if group.is_main():
            open_run_folder(folder)
    for note in notes_on(dataset) if group.is_main() else ():
        LOGGER.warning(note)
    metrics, served = evaluation(net, NoEma())
    if known is None and group.is_main():
        names = some_of(experiment.task.derived_from_data_only(experiment.config.net))
        warnings.warn(
            f"{names} is derived from dataset.train, which is not here: the validation loss is not that of training", stacklevel=2
        )
    reports: list[Path] = []
    if group.is_main():
        reports = experiment.task.write_reports(served, folder, dataset, experiment.config.saver.save_result)
    return metrics, reports, report


def net_to_evaluate(
    experiment: Experiment, checkpoint: Path | None, known: DerivedArguments | None
) -> tuple[Net, dict[str, Any], LoadReport | None]:
    """The net in evaluation mode, what its checkpoint says of the classes, and how it was read; None for random weights."""
    if checkpoint is None and tries_out(experiment):
        return build_net(experiment, experiment.task.derived_from_weights(None, experiment.config.net)).eval(), {}, None
    trained = load_net(experiment, checkpoint, known=known)
    names = trained.class_names
    derived = {"class_names": names} if names and isinstance(names[0], str) else {}  # those of several heads are the evaluator's
    return trained.net, derived, trained.report


def tries_out(experiment: Experiment) -> bool:
    """Whether random weights may serve: there are no others, none are named, and images without labels measure nothing."""
    saver, test = experiment.config.saver, experiment.config.dataset.test
    if test is None or test.dataset.kwargs.get("meta_type") != "inference_only" or saver.resume_model or saver.pretrain_model:
        return False
    return not any((experiment.folder / name).is_file() for name in (BEST, LATEST))
