"""Checks of a search before any trial: every space, value, constraint, fragment and algorithm, with file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from up.build.experiment import find_task, group_problems, part_problems
from up.config.tree import MappingNode, Mark, Node, from_plain, set_at, to_plain
from up.errors import ConfigError, Problem, UserError
from up.schema.decode import Decoded, decode, missing_for_training
from up.schema.search import COSTS, FULL_TRAIN, StageSection
from up.search.algorithm import Algorithm, Direction, History
from up.search.settings import (
    as_names,
    completed,
    stage_places,
    with_epochs,
    with_fragment,
    with_settings,
    without_path,
    without_search,
)
from up.search.space import Dimension, Space
from up.search.stages import Search, build_algorithm, epochs_of, stage_space
from up.tasks.experiment import Experiment, placed_parts
from up.text import count, did_you_mean
from up.types import Json

_ENDLESS = ("random", "tpe", "gp", "evolution", "cma_es", "asha", "bohb", "boss", "backbone_nas")
_MOST_TRIED = 60  # values of a key
_STOP = "trainer.stop_epoch"
_LATER = ("best", "pareto", "schedule")


def expect_good(search: Search) -> None:
    """Raise ``ConfigError`` with every mistake of the search."""
    problems = list(dict.fromkeys(problems_of(search)))
    if problems:
        located = search.decoded.origins.locate(problems)
        raise ConfigError(sorted(dict.fromkeys(located), key=lambda problem: (problem.file, problem.line or 0)))


def problems_of(search: Search) -> Iterator[Problem]:
    """Yield the mistakes of the training itself, then of each stage."""
    tree = without_search(search.tree)
    own = list(_of_tree(search, tree))
    yield from own
    config = search.decoded.config
    yield from missing_for_training(config)
    if config.dataset.test is None:
        yield Problem("is missing: its transforms and its evaluator are those of the holdout", key="dataset.test")
    if config.trainer.max_iter is not None or config.runtime.iter_base:
        key = "trainer.max_iter" if config.trainer.max_iter is not None else "runtime.iter_base"
        yield Problem("counts steps, and a search counts epochs", key=key, fix="Use trainer.max_epoch.")
    if config.trainer.stop_epoch is not None:
        yield _of_length(_STOP)
    if own:
        return
    earlier: list[str] = []
    for name, place, block in stage_places(search.tree):
        entry = next(each for each in search.section.stages if each.name == name)
        if entry.full_train is not None:
            for key in ("candidates", "hparams", "augment"):
                yield from _fragment_problems(search, getattr(entry.full_train, key), f"{place}.{key}", earlier)
            yield from _set_problems(search, tree, block, place)
        else:
            yield from _stage_problems(search, entry.trials[name], place, block, earlier)
        earlier.append(name)


def _stage_problems(search: Search, section: StageSection, place: str, block: MappingNode, earlier: list[str]) -> Iterator[Problem]:
    yield from _fragment_problems(search, section.from_, f"{place}.from", earlier)
    tree = without_search(search.tree)
    for name in as_names(section.from_):
        file = next((path for path in (Path(name), search.path.parent / name) if path.is_file()), None)
        tree = with_fragment(tree, file) if file is not None else tree
    set_problems = list(_set_problems(search, tree, block, place))
    yield from set_problems
    try:
        algorithm = build_algorithm(search, section, place)
        space = stage_space(search, section, algorithm, place)
    except UserError as error:
        yield from (replace(each, key=each.key) for each in error.problems)
        return
    own = getattr(algorithm, "space", None)
    brings_space = own is not None or getattr(algorithm, "settings", None) is not None
    if _STOP in space.names:
        yield _of_length(f"{place}.space.{_STOP}")
    if not len(space) and not brings_space:
        yield Problem("is missing: it names the keys to search", key=f"{place}.space")
    if section.trials is None and section.algorithm in _ENDLESS:
        yield Problem(f"is missing: {section.algorithm} has no end of its own", key=f"{place}.trials")
    if getattr(algorithm, "sets_length", False):
        yield from _length_problems(section, place)
    prunes = getattr(algorithm, "one_objective", getattr(algorithm, "should_stop", None) is not None)
    if prunes and len(section.objectives) > 1:
        what = f"{section.algorithm} prunes by one objective, and there are {len(section.objectives)}"
        yield Problem(what, key=f"{place}.objectives", fix="Name one.")
    yield from _constraint_problems(section, place)
    yield from _decision_problems(search, section, algorithm, space, place)
    if set_problems or getattr(algorithm, "settings", None) is not None:  # such settings are not keys of the space
        return
    tree = with_settings(tree, section.set, section.max_epoch)
    yield from _value_problems(search, tree, space, f"{place}.space", block)
    yield from _enqueue_problems(section, tree, space, place)


def _length_problems(section: StageSection, place: str) -> Iterator[Problem]:
    """Yield the keys that have no effect, because the arguments of the algorithm decide the length of the stage."""
    what = f"has no effect in a stage of {section.algorithm}, whose arguments decide how many trials train and how long"
    given = {
        "trials": section.trials is not None,
        "max_epoch": section.max_epoch is not None,
        "set.trainer.max_epoch": "trainer.max_epoch" in section.set,
        "enqueue": bool(section.enqueue),
    }
    for name in (name for name, is_given in given.items() if is_given):
        yield Problem(what, key=f"{place}.{name}", fix="Remove it; set population, rungs and epochs_per_rung instead.")


def _decision_problems(search: Search, section: StageSection, algorithm: Algorithm, space: Space, place: str) -> Iterator[Problem]:
    """Yield what the algorithm finds wrong with the space in its first decision."""
    ways: list[Direction] = ["minimize" if way == "min" else "maximize" for way in section.objectives.values()]
    try:
        if len(space):
            algorithm.suggest(History((), space, ways, search.seed, section.max_epoch or 1, section.trials or 0))
    except UserError as error:
        for each in error.problems:
            yield replace(each, key=f"{place}.space.{each.key}" if each.key in space.names else f"{place}.{each.key}".rstrip("."))


def _constraint_problems(section: StageSection, place: str) -> Iterator[Problem]:
    for name, way in section.objectives.items():
        if name in COSTS and way == "max":
            yield Problem(got="max", expected="min: a cost is minimized", key=f"{place}.objectives.{name}")


def _fragment_problems(search: Search, names: str | list[str] | None, key: str, earlier: Iterable[str]) -> Iterator[Problem]:
    """Yield names of fragments that no earlier stage writes, and files that do not exist."""
    known = list(earlier)
    for name in as_names(names):
        stage, _, kind = name.partition(".")
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file() and not (search.path.parent / name).is_file():
                yield Problem(f"{name}: no such file", key=key, fix="Write it, or name a stage such as nas.best.")
        elif stage not in known:
            hand_written = (search.run / stage / f"{kind or 'best'}.yaml").is_file()
            if not hand_written:
                fix = did_you_mean(stage, known).strip() or f"Stages before this one: {', '.join(known) or 'none'}."
                yield Problem(f"no stage before this one is called {stage!r}", key=key, fix=fix)
        elif kind not in _LATER:
            yield Problem(got=name, expected=f"{stage}.best, {stage}.pareto or {stage}.schedule", key=key)


def _set_problems(search: Search, tree: MappingNode, block: MappingNode, place: str) -> Iterator[Problem]:
    values = block.block("set")
    if values.get(_STOP) is not None and to_plain(values.entries[_STOP]) is not None:
        yield _of_length(f"{place}.set.{_STOP}")
    for path, node in values.entries.items():
        yield from _of_value(search, tree, str(path), node, f"{place}.set.{path}", values.key_marks[path])
    epochs = block.get("max_epoch")
    if epochs is not None and not values.entries:
        yield from _expecting(lambda: with_epochs(tree, int(to_plain(epochs))), f"{place}.max_epoch")
    if "trainer.max_epoch" not in values.entries and epochs is None:
        yield from _expecting(lambda: epochs_of(tree), f"{place}.max_epoch")


def _of_length(key: str) -> Problem:
    """Describe a ``trainer.stop_epoch``, at ``key``: a trial that it ends would wait for its further epochs."""
    what = "stops a training before its end, and a search decides how long a trial trains"
    return Problem(what, key=key, fix="Remove it, or lower max_epoch.")


def _expecting(action: object, key: str) -> Iterator[Problem]:
    try:
        assert callable(action)
        action()
    except UserError as error:
        yield from (replace(each, key=key, file="", line=None) for each in error.problems)


def _value_problems(search: Search, tree: MappingNode, space: Space, key: str, block: MappingNode) -> Iterator[Problem]:
    """Check each value of each key, and the ends of ranges, with the conditions of the key met."""
    written = block.block("space")
    for dimension in space.dimensions:
        base = _met(tree, space, dimension)
        mark = written.key_marks.get(dimension.path, block.mark)
        values = dimension.values if dimension.values is not None else (dimension.at(0.0), dimension.at(1.0))
        for value in values[:: -(-len(values) // _MOST_TRIED)]:  # more are lists of switches, which are all alike
            node = from_plain(value, mark)
            allowed = _unset(base, space, dimension.path, value)
            yield from _of_value(search, allowed, dimension.path, node, f"{key}.{dimension.path}", mark)


def _met(tree: MappingNode, space: Space, dimension: Dimension) -> MappingNode:
    """Set the conditions of a key, those of the conditions first; keys whose conditions do not hold then are unset."""
    values: dict[str, Json] = {}

    def meet(each: Dimension) -> None:
        for path, allowed in each.when.items():
            meet(space[path])
            values[path] = allowed[0]

    meet(dimension)
    for path, value in values.items():
        tree = set_at(tree, path, from_plain(value, tree.mark), tree.mark)
    return tree


def _unset(tree: MappingNode, space: Space, path: str, value: Json) -> MappingNode:
    for other in space.dimensions:
        if path in other.when and value not in other.when[path]:
            tree = without_path(tree, other.path)
    return tree


def _of_value(search: Search, tree: MappingNode, path: str, node: Node, key: str, mark: Mark) -> Iterator[Problem]:
    """Yield the problems that a value at a dotted path causes, without those that the configuration has anyway."""
    try:
        changed = set_at(tree, path, node, mark)
    except ConfigError as error:
        yield from (replace(each, key=key, file="", line=None, about_key=True) for each in error.problems)
        return
    for problem in _of_tree(search, changed):
        what = problem.what if problem.key == path else ": ".join(filter(None, [problem.key, problem.what]))
        yield replace(problem, key=key, what=what, file="", line=None)


def _of_tree(search: Search, tree: MappingNode) -> Iterator[Problem]:
    """Yield what is wrong with a configuration: its sections, and the parts against their signatures."""
    try:
        decoded: Decoded = decode(tree)
    except ConfigError as error:
        yield from error.problems
        return
    experiment = Experiment(search.path, decoded, find_task(decoded.config.runtime.task_names), search.tables)
    yield from part_problems(experiment, placed_parts(experiment))
    yield from group_problems(experiment)


def _enqueue_problems(section: StageSection, tree: MappingNode, space: Space, place: str) -> Iterator[Problem]:
    for number, point in enumerate(section.enqueue):
        for path, value in point.items():
            key = f"{place}.enqueue.{number}.{path}"
            if path not in space.names:
                fix = did_you_mean(path, space.names).strip()
                yield Problem(f"{path!r} is not a key of the space", key=key, about_key=True, fix=fix)
            elif not space[path].holds(value):
                yield Problem(got=value, expected=f"a value of {path} in the space", key=key)
        yield from _expecting(partial(completed, space, tree, point), f"{place}.enqueue.{number}")


def plan_lines(search: Search) -> Iterator[str]:
    """Yield what the search will do, a line for each stage."""
    for entry in search.section.stages:
        name = entry.name
        if entry.full_train is not None:
            section = entry.full_train
            yield f"{FULL_TRAIN}: {count(section.top, 'candidate')}, {count(section.seeds, 'seed')} each, on all of dataset.train"
            continue
        stage = entry.trials[name]
        space = stage_space(search, stage, build_algorithm(search, stage, search.place(name)), search.place(name))
        limits = (stage.constraints or search.section.constraints).limits
        within = f", within {', '.join(f'{key} {value:.6g}' for key, value in limits.items())}" if limits else ""
        many = count(stage.trials, "trial") if stage.trials else "trials until the algorithm ends"
        yield f"{name}: {stage.algorithm}, {many} over {count(len(space), 'key')}, {_by(stage.objectives)}{within}"


def _by(objectives: Mapping[str, str]) -> str:
    return " and ".join(f"{name} {way}" for name, way in objectives.items())
