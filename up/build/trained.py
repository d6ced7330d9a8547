"""Load a trained network from its checkpoint, for evaluation, prediction and export."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from up.build.data import build_evaluation, derived_from_train, notes_on, section_of
from up.build.network import build_net, precision_of, select_device, synchronize_and_compile, to_device
from up.config.parts import DerivedArguments
from up.data.dataset import KeyedDataset
from up.data.records import Dataset
from up.distributed import group
from up.distributed.failures import join_group, local_phase, on_all_ranks
from up.engine.ema import NoEma
from up.engine.evaluate import Evaluation
from up.engine.folder import open_run_folder
from up.engine.trained_images import expect_not_trained_on
from up.errors import UserError
from up.files import BEST, LATEST, best_of_run, named_checkpoint, title_of
from up.intervals import Interval
from up.models.auxiliary import remove_auxiliary
from up.models.net import Net
from up.models.pretrained import is_of_timm
from up.models.weights import LoadReport, load_weights, read_state
from up.run_files import RESULTS
from up.schema.decode import missing_at
from up.tasks.experiment import Experiment
from up.text import some_of
from up.tracking.log import LOGGER

NO_WEIGHTS = (
    "there is no checkpoint and saver.pretrain_model is not set, so these predictions are those of random weights. "
    "Name a checkpoint with --ckpt FILE."
)


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode on a device, with the class names and the report of its checkpoint."""

    net: Net
    checkpoint: Path
    class_names: list[str] | None
    report: LoadReport
    device: torch.device


def find_checkpoint(experiment: Experiment, named: Path | None) -> Path:
    """Return the named checkpoint, else the run's best, else ``saver.resume_model`` or ``pretrain_model``."""
    if named is not None:
        return named_checkpoint(named)
    saver = experiment.config.saver
    for path in (best_of_run(experiment.folder), saver.resume_model, saver.pretrain_model):
        if path is not None and named_checkpoint(path).is_file():
            return named_checkpoint(path)
    for key, file in (("saver.resume_model", saver.resume_model), ("saver.pretrain_model", saver.pretrain_model)):
        if file is not None and not is_of_timm(file):
            experiment.raise_if_any(missing_at(key, file))
    raise UserError(f"{experiment.folder}: contains no {BEST} or {LATEST}. Train first, or name a checkpoint with --ckpt FILE.")


def load_trained(experiment: Experiment, checkpoint: Path | None) -> Trained:
    """Load as ``load_net``, on the configured device, joined to the other ranks and compiled if configured."""
    with local_phase():
        device = select_device(experiment)
        trained = load_net(experiment, checkpoint)
    join_on(experiment, trained.net, device)
    return replace(trained, device=device)


def join_on(experiment: Experiment, net: Net, device: torch.device) -> None:
    """Move ``net`` to its device, join the other ranks, and synchronise and compile the net if configured."""
    dist = experiment.config.runtime.dist
    with local_phase():
        to_device(experiment, net, device)
    join_group(device, timeout_s=dist.timeout, backend=dist.backend)
    synchronize_and_compile(experiment, net)


def load_net(experiment: Experiment, checkpoint: Path | None, *, known: DerivedArguments | None = None) -> Trained:
    """Build the net of the configuration, on the CPU and in evaluation mode, and load the checkpoint.

    Loads the averaged weights if the checkpoint has them. ``known`` are arguments derived from the data, if available.
    """
    path = find_checkpoint(experiment, checkpoint)
    weights = read_state(path)
    names = list(weights.class_names) if weights.class_names else None
    derived = experiment.task.derived_from_weights(weights, experiment.config.net)
    net = build_net(experiment, {**derived, **(known or {})})
    report = load_weights(net, weights)  # a new head would predict noise
    remove_auxiliary(net)
    net.eval()
    return Trained(net, path, names, report, torch.device("cpu"))


def derived_from_data_only(experiment: Experiment) -> DerivedArguments | None:
    """Return the derived arguments that no checkpoint has, from the training data; None if they exist but the data do not."""
    names = experiment.task.derived_from_data_only(experiment.config.net)
    known = derived_from_train(experiment) if names else {}
    return {name: known[name] for name in names} if known.keys() >= {*names} else None


class EvaluatedCheckpoint(NamedTuple):
    """Metrics in the unit of the task, their 95 % intervals, the report files, and how it was loaded; None for random weights."""

    metrics: dict[str, float]
    intervals: Mapping[str, Interval]
    files: list[Path]
    loaded: LoadReport | None


def evaluate_checkpoint(
    experiment: Experiment,
    checkpoint: Path | None,
    out: Path | None,
    *,
    allow_trained_images: bool = False,
    test: Path | None = None,
) -> EvaluatedCheckpoint:
    """Evaluate a checkpoint on ``dataset.test`` and write the reports of the task, on the main rank.

    ``test``: a folder or list of images to evaluate instead of those of ``dataset.test``. ``out`` is by default the
    ``results`` of the run, or ``results_NAME`` for ``test`` of this name. Raises ``UserError`` for images that the checkpoint was
    trained on, unless ``allow_trained_images``.
    """
    results = Path(experiment.config.saver.results_dir or experiment.folder / RESULTS)
    folder = out or (results if test is None else results.with_name(f"{results.name}_{title_of(test)}"))
    net, report, evaluation, dataset, known = ready_to_evaluate(experiment, checkpoint, folder, test)
    unchecked = ""
    with on_all_ranks():
        if group.is_main():
            is_labelled = test is not None or experiment.task.is_labelled(section_of(experiment, "test").dataset)
            if report is not None and is_labelled:
                files = dataset.files if isinstance(dataset, KeyedDataset) else None
                with experiment.placing("dataset.test") if test is None else nullcontext():
                    unchecked = expect_not_trained_on(find_checkpoint(experiment, checkpoint), files, allowed=allow_trained_images)
            open_run_folder(folder)
    for note in notes_on(dataset) if group.is_main() else ():
        LOGGER.warning(note)
    metrics, served, intervals = evaluation(net, NoEma())
    if unchecked:
        LOGGER.info(unchecked)
    if known is None and group.is_main():
        names = some_of(experiment.task.derived_from_data_only(experiment.config.net))
        warnings.warn(
            f"{names} is derived from dataset.train, which is missing: the validation loss differs from that of training",
            stacklevel=2,
        )
    reports: list[Path] = []
    if group.is_main():
        reports = experiment.task.write_reports(served, folder, dataset, experiment.config.saver.save_result)
    return EvaluatedCheckpoint(metrics, intervals, reports, report)


class ReadyToEvaluate(NamedTuple):
    """A net on its device, how it was loaded, its evaluation and data set, and ``derived_from_data_only``."""

    net: Net
    loaded: LoadReport | None
    evaluation: Evaluation
    dataset: Dataset
    known: DerivedArguments | None


def ready_to_evaluate(
    experiment: Experiment, checkpoint: Path | None, results: Path | None = None, test: Path | None = None
) -> ReadyToEvaluate:
    """Build what evaluates a checkpoint on ``dataset.test``, or on the images at ``test``, joined to the other ranks.

    Writes nothing.
    """
    with local_phase():
        device = select_device(experiment)
        known = derived_from_data_only(experiment)
        net, derived, report = net_to_evaluate(experiment, checkpoint, known)
        if test is not None:
            experiment = with_other_images(experiment, test, derived)
        evaluation, dataset = build_evaluation(experiment, derived, device, precision_of(experiment, device), results)
    join_on(experiment, net, device)
    return ReadyToEvaluate(net, report, evaluation, dataset, known)


def with_other_images(experiment: Experiment, path: Path, trained: DerivedArguments) -> Experiment:
    """Return the experiment with ``dataset.test`` on the images at ``path``; ``trained``: ``class_names`` of the net, if known."""
    source, names = section_of(experiment, "test"), trained.get("class_names")
    part = experiment.task.with_images(source.dataset, path, list(names) if isinstance(names, list | tuple) else None)
    test = source.model_copy(update={"dataset": part, "subset": None})
    dataset = experiment.config.dataset.model_copy(update={"test": test})
    config = experiment.config.model_copy(update={"dataset": dataset})
    return replace(experiment, decoded=experiment.decoded._replace(config=config))


def net_to_evaluate(
    experiment: Experiment, checkpoint: Path | None, known: DerivedArguments | None
) -> tuple[Net, DerivedArguments, LoadReport | None]:
    """Return the net in evaluation mode, the arguments that follow from it, and how it was loaded; None for random weights."""
    if checkpoint is None and is_untrained_inference(experiment):
        return build_net(experiment, experiment.task.derived_from_weights(None, experiment.config.net)).eval(), {}, None
    trained = load_net(experiment, checkpoint, known=known)
    return trained.net, derived_from_trained(experiment, trained), trained.report


def derived_from_trained(experiment: Experiment, trained: Trained) -> DerivedArguments:
    """Return the derived arguments of the evaluation data set that follow from a net and the class names in its checkpoint."""
    names = trained.class_names
    named = {"class_names": names} if names and isinstance(names[0], str) else {}  # the evaluator names those of several heads
    return {**experiment.task.derived_from_net(trained.net), **named}


def is_untrained_inference(experiment: Experiment) -> bool:
    """Check whether random weights are allowed: there are no others, and images without labels give no metrics."""
    saver, test = experiment.config.saver, experiment.config.dataset.test
    if test is None or test.dataset.kwargs.get("meta_type") != "inference_only" or saver.resume_model or saver.pretrain_model:
        return False
    return best_of_run(experiment.folder) is None
