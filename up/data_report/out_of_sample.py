"""Out-of-sample probabilities of a run: of its validation images, or of its training images by k folds."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import yaml
from numpy.typing import NDArray

from up.build.data import build_dataset, build_evaluation
from up.build.experiment import load_experiment
from up.build.network import precision_of, select_device
from up.build.trained import derived_from_data_only, find_checkpoint, join_on, net_to_evaluate, with_other_images
from up.data.dataset import KeyedDataset
from up.data.records import Dataset
from up.data.split import folds_of
from up.distributed.signals import handled
from up.engine.child import Child
from up.engine.ema import NoEma
from up.engine.folder import read_status
from up.engine.trained_images import expect_not_trained_on
from up.errors import PeerLost, UserError
from up.files import LATEST, make_folder, write_json, write_text
from up.schema.show import effective_yaml
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.predictions import UNREADABLE, Predictions
from up.tasks.cls.evaluate.row_file import Array, RowFile, blocks_of, rows_at
from up.tasks.experiment import Experiment
from up.tracking.log import LOGGER
from up.types import Record

_FROM_TEST = ("transformer", "evaluator", "save_score")  # of the data set that a fold is evaluated on
_ALL_SCORES = ("dataset.test.dataset.kwargs.save_score=true",)
_PERIOD_S = 0.2


@dataclass(frozen=True)
class OutOfSample:
    """Probabilities (N, C) of images that the net was not trained on, with their labels (N,), names, paths and places.

    A large array of probabilities is in a temporary file. Scores that are not finite are rows of zeros.
    """

    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    names: list[str]
    paths: list[str]
    where: list[str]
    classes: list[str]
    source: str  # dataset.train or dataset.test of the YAML file, or a path of images


def of_images(
    config: Path, overrides: Sequence[str], checkpoint: Path | None, test: Path | None = None, *, allow_trained_images: bool = False
) -> OutOfSample:
    """Predict the images of ``dataset.test``, or at ``test``, with a checkpoint, by default the best of the run.

    Raises ``UserError`` for images that the checkpoint was trained on, unless ``allow_trained_images``.
    """
    experiment = load_experiment(config, [*overrides, *_ALL_SCORES])
    with experiment.plugin_errors():
        return _predicted(experiment, "dataset.test", checkpoint, test=test, allow_trained_images=allow_trained_images)


def of_folds(config: Path, overrides: Sequence[str], folds: int, out: Path, tell: Callable[[str], object]) -> OutOfSample:
    """Train the run ``folds`` times, each time on all but one of the folds of ``dataset.train``, and predict that fold.

    The trainings are child processes, one after another, in ``out``; those that are finished stay, and one that was interrupted
    continues. Raises ``UserError`` if one fails, ``PeerLost`` or ``KeyboardInterrupt`` after a signal, when the child has saved.
    """
    experiment = load_experiment(config, overrides)
    dataset = build_dataset(experiment, "train")
    _expect_labels(experiment, dataset)
    held = _folds(experiment, dataset, folds, out)
    plain: Record = yaml.safe_load(effective_yaml(experiment.config))
    found: list[OutOfSample] = []
    for number, indices in enumerate(held):
        folder = out / f"fold-{number}"
        make_folder(folder)
        path = _write_fold(plain, experiment, (folder, len(dataset), indices))
        if not _is_done(folder):
            tell(f"fold {number + 1} of {folds}: trains on {len(dataset) - len(indices):,} images; log: {folder / 'console.log'}")
            _train(path, folder, config.parent)
        found.append(_predicted(load_experiment(path), "dataset.train", folder / LATEST, allow_trained_images=True))
    probabilities = rows_at([each.probabilities for each in found], slice(None))
    labels = np.concatenate([each.labels for each in found])
    lists = [[value for each in found for value in getattr(each, name)] for name in ("names", "paths", "where")]
    return OutOfSample(probabilities, labels, lists[0], lists[1], lists[2], found[0].classes, "dataset.train")


def _expect_labels(experiment: Experiment, dataset: Dataset) -> None:
    labels = dataset.label_sets
    if labels is None or labels.values.ndim != 1 or labels.offsets is not None:
        raise experiment.error("has no single label for each image, so label errors cannot be found", key="dataset.train")
    if experiment.config.dataset.test is None:
        raise experiment.error("is missing: its transforms evaluate the folds", key="dataset.test")


def _folds(experiment: Experiment, dataset: Dataset, folds: int, out: Path) -> list[list[int]]:
    """Draw the folds, near duplicates in one, or read those of an earlier start."""
    seed = experiment.config.runtime.random_seed
    record = {"fingerprint": dataset.fingerprint(), "folds": folds, "seed": seed}
    about = out / "folds.json"
    if about.is_file():
        earlier = json.loads(about.read_text(encoding="utf-8"))
        if {name: earlier.get(name) for name in record} != record:
            fix = f"Remove {out}, or name another folder with --out."
            raise UserError(f"{about} is of other training data, folds or another seed", fix=fix)
        held: list[list[int]] = earlier["held"]
        return held
    files = dataset.files if isinstance(dataset, KeyedDataset) else None
    labels = dataset.label_sets
    if files is None or labels is None:
        raise experiment.error("names no files, so that its folds cannot be drawn", key="dataset.train.dataset")
    paths = [files.path_of(index) for index in range(len(files))]
    splits = folds_of(paths, [labels[index] for index in range(len(paths))], folds, seed)
    make_folder(out)
    write_json(about, {**record, "held": [split.validation for split in splits]})
    return [split.validation for split in splits]


def _write_fold(plain: Record, experiment: Experiment, fold: tuple[Path, int, list[int]]) -> Path:
    """Write the configuration of a fold: trained on all images but ``indices``, evaluated on these as ``dataset.test`` is."""
    folder, images, indices = fold
    before = experiment.config.dataset.train.subset if experiment.config.dataset.train is not None else None
    every = json.loads(Path(before).read_text(encoding="utf-8")) if before is not None else list(range(images))
    held = {*indices}
    parts = {"train": [every[at] for at in range(images) if at not in held], "test": [every[at] for at in indices]}
    train, test = plain["dataset"]["train"], plain["dataset"]["test"]
    kwargs = {key: value for key, value in train["dataset"]["kwargs"].items() if key not in _FROM_TEST}
    kwargs |= {key: value for key, value in test["dataset"]["kwargs"].items() if key in _FROM_TEST}
    evaluated = {**test, "dataset": {"type": train["dataset"]["type"], "kwargs": {**kwargs, "save_score": True}}}
    sources = {"train": train, "test": evaluated}
    for name, part in parts.items():
        write_json(folder / f"{name}.json", part)
        sources[name] = {**sources[name], "subset": str(folder / f"{name}.json")}
    dataset = {**plain["dataset"], **sources}
    saver = {**plain.get("saver", {}), "save_dir": str(folder), "auto_resume": True, "resume_model": None, "results_dir": None}
    changed = {**plain, "dataset": dataset, "saver": {key: value for key, value in saver.items() if value is not None}}
    changed = {key: value for key, value in changed.items() if key not in ("trackers", "to_kestrel", "search")}
    path = folder / "fold.yaml"
    write_text(path, yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=120))
    return path


def _is_done(folder: Path) -> bool:
    status = read_status(folder)
    return status is not None and status.state == "done" and (folder / LATEST).is_file()


def _train(config: Path, folder: Path, plugins: Path) -> None:
    """Train in a child process to the end. A signal lets the child save and end first."""
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)

    with handled(ask):
        child = Child(config, folder, paths=[str(plugins.resolve())])
        try:
            while not child.has_ended():
                if asked:
                    child.stop()
                time.sleep(_PERIOD_S)
        finally:
            child.kill()
    verdict = child.verdict()
    if asked:
        if asked[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise PeerLost(f"{folder}: interrupted by {signal.Signals(asked[0]).name}", fix="The same command continues.")
    if verdict.outcome != "done":
        raise UserError(f"{folder}: the training {verdict.outcome}: {verdict.reason}", fix="The same command continues.")


def _predicted(
    experiment: Experiment, source: str, checkpoint: Path | None, *, test: Path | None = None, allow_trained_images: bool = False
) -> OutOfSample:
    """Predict ``dataset.test`` of ``experiment``, whose labels stand in ``source`` of the run, or the images at ``test``."""
    device = select_device(experiment)
    net, derived, _ = net_to_evaluate(experiment, checkpoint, derived_from_data_only(experiment))
    if test is not None:
        experiment = with_other_images(experiment, test, derived)
    evaluation, dataset = build_evaluation(experiment, derived, device, precision_of(experiment, device))
    files = dataset.files if isinstance(dataset, KeyedDataset) else None
    unchecked = expect_not_trained_on(find_checkpoint(experiment, checkpoint), files, allowed=allow_trained_images)
    if unchecked:
        LOGGER.info(unchecked)
    join_on(experiment, net, device)
    evaluator = evaluation(net, NoEma()).served
    empty = Predictions(np.zeros(0), [], [])
    predictions = evaluator.predictions if isinstance(evaluator, ImageNetEvaluator) else empty
    heads = predictions.heads
    if len(heads) != 1 or heads[0].scores is None or heads[0].gt is None or heads[0].gt.ndim != 1 or files is None:
        what = "label errors are found by one label and a score of each class for every image, which these data or this net lack"
        raise experiment.error(what, key=source)
    head = heads[0]
    assert head.scores is not None
    if (head.preds == UNREADABLE).all():
        fix = "Train again, or name another checkpoint with --ckpt."
        raise UserError(f"{test or source}: the network gives no image finite scores", fix=fix)
    indices = predictions.index.tolist()
    names = getattr(dataset, "class_names", None) or derived.get("class_names")
    return OutOfSample(
        probabilities_of(head.scores),
        head.labels.astype(np.int64),
        [files.names[index] for index in indices],
        [files.path_of(index) for index in indices],
        [str(files.where(index)) for index in indices],
        [str(name) for name in names] if isinstance(names, list) else [str(label) for label in range(head.classes)],
        source if test is None else str(test),
    )


def probabilities_of(scores: Array) -> NDArray[np.float64]:
    """Normalize scores (N, C) to probabilities that add up to 1; a large result is in a temporary file."""
    made = RowFile()
    made.append(np.zeros((0, scores.shape[1])))
    for rows in blocks_of(*scores.shape):
        block = scores[rows].astype(np.float64)
        made.append(block / np.maximum(block.sum(axis=1, keepdims=True), 1e-12))
    return made.array()
