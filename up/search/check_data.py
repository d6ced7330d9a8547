"""Checks of a search with its data: files, the images that each stage trains on, and a first step of the file's own training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from up.build.data import build_dataset, part_of, train_batches
from up.build.experiment import find_task, missing_files
from up.config.tree import MappingNode
from up.data.records import Dataset
from up.errors import Problem, UserError
from up.schema.decode import decode
from up.schema.search import FULL_TRAIN
from up.search.algorithm import History, Trial
from up.search.devices import visible_gpus
from up.search.holdout import split
from up.search.settings import evaluated_on_train, plain_of, stage_places, with_settings, with_values, without_search
from up.search.space import Space
from up.search.stages import Search, build_algorithm, stage_space
from up.tasks.experiment import Experiment
from up.types import Json

_OF_A_STEP = ("dataset.train.batch_sampler.kwargs.batch_size", "trainer.accumulate")


def expect_data(search: Search) -> None:
    """Raise ``ConfigError`` for missing files, and for stages whose trials have fewer images than one step takes."""
    experiment = _experiment(search, without_search(search.tree))
    experiment.raise_if_any(missing_files(experiment))
    whole = build_dataset(experiment, "train")
    trained = whole
    if search.section.holdout:
        with search.decoded.origins.placing("search"):
            kept, _ = split(whole, search.section.holdout, search.seed)
        with experiment.placing("dataset.train.dataset.type"):
            trained = part_of(whole, kept)
    experiment.raise_if_any(
        problem
        for name, place, _ in stage_places(search.tree)
        for problem in _step_problems(search, name, place, whole if name == FULL_TRAIN else trained)
    )


def expect_training(search: Search, warn: Callable[[str], object]) -> None:
    """Run the first step and the first evaluation of the file's own training, without the test split.

    Raises the ``UserError`` that a trial with the file's own values would raise; creates nothing.
    """
    from up.build.check import check_experiment  # and what exports

    tree = without_search(search.tree)
    experiment = _experiment(search, evaluated_on_train(tree) if search.section.holdout else tree)
    for _ in check_experiment(experiment, warn):
        pass


def _experiment(search: Search, tree: MappingNode) -> Experiment:
    decoded = decode(tree)
    return Experiment(search.path, decoded, find_task(decoded.config.runtime.task_names), search.tables)


def _step_problems(search: Search, name: str, place: str, data: Dataset) -> Iterator[Problem]:
    """Yield the mistake of a stage that trains on ``data`` in steps of more images than there are."""
    entry = next(each for each in search.section.stages if each.name == name)
    tree = with_settings(without_search(search.tree), (entry.full_train or entry.trials[name]).set)
    if entry.full_train is None:
        section = entry.trials[name]
        algorithm = build_algorithm(search, section, place)
        tree = with_values(tree, _largest(stage_space(search, section, algorithm, place)))
        own = getattr(algorithm, "settings", None)
        if getattr(algorithm, "finds_networks", False) and own is not None:
            tree = with_values(tree, own(Trial(0, {}), History((), Space(())), plain_of(tree)))
    ranks = search.section.gpus_per_trial if visible_gpus() else 1
    try:
        train_batches(_experiment(search, tree), data, ranks=max(1, ranks))
    except UserError as error:
        for each in error.problems:
            yield Problem(": ".join(filter(None, [each.key, each.what])), key=place, fix=each.fix)


def _largest(space: Space) -> dict[str, Json]:
    """Return the values of the space with which a step takes the most images."""
    values = {}
    for dimension in space.dimensions:
        if dimension.path in _OF_A_STEP:
            values[dimension.path] = dimension.at(1.0) if dimension.values is None else max(dimension.values)
    return values
