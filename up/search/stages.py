"""The stages of a search, read from the configuration: what each of their trials trains, and by which algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from up.build.experiment import all_tables, find_task
from up.config.parts import build_part
from up.config.section import Part
from up.config.tree import MappingNode
from up.errors import ConfigError, Problem, UserError
from up.registry import Registry
from up.schema.decode import Decoded, decode
from up.schema.search import COSTS, ConstraintsSection, FullTrainSection, SearchSection, StageSection
from up.search.algorithm import Algorithm, Direction, History, Trial
from up.search.settings import (
    SECTION,
    completed,
    fragments_named,
    load_tree,
    plain_of,
    require_files,
    text_of,
    values_of,
    with_fragment,
    with_settings,
    without_search,
)
from up.search.space import Point, Space
from up.search.space_form import read_space
from up.search.state_file import ID, State
from up.types import Json

_WAYS: Mapping[str, Direction] = {"max": "maximize", "min": "minimize"}


@dataclass(frozen=True)
class Search:
    """The configuration of a search."""

    path: Path
    tree: MappingNode
    decoded: Decoded
    section: SearchSection
    run: Path
    tables: Mapping[str, Registry]
    overrides: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """``runtime.random_seed``."""
        return self.decoded.config.runtime.random_seed

    @property
    def names(self) -> list[str]:
        """Names of the stages, in order."""
        return [each.name for each in self.section.stages]

    def place(self, stage: str) -> str:
        """Return the dotted path of a stage, or of the stage that its control rows are of."""
        stage = stage.partition("/")[0]
        return f"{SECTION}.stages.{self.names.index(stage)}.{stage}"


def load_search(path: Path, overrides: tuple[str, ...] = ()) -> Search:
    """Read the configuration of a search. Raises ``ConfigError`` with all problems of its sections."""
    tree = load_tree(path, overrides)
    decoded = decode(tree)
    section = decoded.config.search
    if section is None:
        missing = Problem("is missing: it names the stages", key=SECTION, fix="See docs/search.md.")
        raise ConfigError(decoded.origins.locate([missing]))
    runtime = decoded.config.runtime
    with decoded.origins.placing("runtime.task_names"):
        task = find_task(runtime.task_names)
    with decoded.origins.placing("runtime.plugins"):
        tables = all_tables(task, runtime.plugins, path.parent)
    return Search(path, tree, decoded, section, decoded.config.saver.folder(path), tables, overrides)


def study_name(search: Search, stage: str) -> str:
    """Name the study of a stage, the same at every start, and in a storage of several searches that of this one alone.

    Searches that began before they had ids are known by the name of their run folder.
    """
    number = State(search.run).read().get(ID) if search.section.storage != "auto" else None
    return f"{search.run.name}{'' if number is None else f'-{number}'}/{stage}"


@dataclass(frozen=True)
class Stage:
    """A stage of trials, ready to run."""

    name: str
    search: Search
    tree: MappingNode
    """The configuration under the trials' own values: fragments and ``set`` are merged."""
    algorithm: Algorithm
    space: Space
    objectives: Mapping[str, Direction]
    constraints: ConstraintsSection
    max_epoch: int
    limit: int
    enqueue: tuple[Point, ...] = ()
    holdout: tuple[Path, Path] | None = None
    section: StageSection | FullTrainSection = field(default_factory=StageSection)

    @property
    def folder(self) -> Path:
        """Folder of the stage."""
        return self.search.run / self.name

    @property
    def study_name(self) -> str:
        """Name of the study in the storage."""
        return study_name(self.search, self.name)

    def trial_folder(self, trial: Trial) -> Path:
        """Folder of a trial, which is the run folder of its training."""
        name = trial.note.get("folder")
        return self.folder / str(name) if name else self.folder / "trials" / f"{trial.number:04}"

    def tree_of(self, trial: Trial) -> MappingNode:
        """Return the configuration to which the values of a trial are added: that of the stage, or, for a trial with its own
        fragments, these merged over it, then ``set``."""
        if "fragments" not in trial.note:
            return self.tree
        tree = self.tree
        for fragment in trial.note["fragments"]:
            tree = with_fragment(tree, Path(fragment))
        return with_settings(tree, self.section.set)

    def settings(self, trial: Trial, history: History) -> dict[str, Json]:
        """Return the values by dotted path that a trial trains with."""
        own = getattr(self.algorithm, "settings", None)
        if own is not None:
            return dict(own(trial, history, plain_of(self.tree)))
        return values_of(self.space, trial.point)

    def text_of(self, point: Point) -> str:
        """Format a point on one line, in the words of the algorithm if it has some; empty for no values."""
        if self.finds_networks:
            return "the supernet, whose networks share their weights"
        own = getattr(self.algorithm, "described", None)
        return text_of(own(point) if own is not None and point else point)

    def should_stop(self, trial: Trial, history: History) -> bool:
        """Ask the algorithm whether to prune a running trial."""
        own = getattr(self.algorithm, "should_stop", None)
        return bool(own is not None and len(self.objectives) == 1 and own(trial, history))

    @property
    def costs(self) -> list[str]:
        """Costs that are measured before training: those with a limit, and those that are objectives."""
        return [name for name in COSTS if name in self.constraints.limits or name in self.objectives]

    @property
    def costs_of_trials(self) -> list[str]:
        """``costs`` if a trial trains the network that they are of; none if its training finds networks by itself."""
        return [] if self.finds_networks else self.costs

    @property
    def finds_networks(self) -> bool:
        """Whether a training of the stage finds networks by itself, as that of a supernet does."""
        return bool(getattr(self.algorithm, "finds_networks", False))

    def objective_values(self, metrics: Mapping[str, float], costs: Mapping[str, float]) -> tuple[float, ...]:
        """Return the objectives of an evaluation: of averaged weights, if there are any.

        Raises ``UserError`` for an unknown metric, and for a value that is not finite, which samplers cannot compare.
        """
        values = []
        for name in self.objectives:
            found = costs.get(name, metrics.get(f"ema_{name}", metrics.get(name)))
            if found is None:
                raise UserError(got=name, expected=f"a metric of the evaluation: {', '.join(sorted(metrics))}", key="objectives")
            if not math.isfinite(found):
                raise UserError(f"the evaluation gave {name} {found}", expected="a finite number", key="objectives")
            values.append(float(found))
        return tuple(values)


def open_stage(search: Search, name: str, holdout: tuple[Path, Path] | None) -> Stage:
    """Read a stage of trials, whose fragments must exist. Raises ``ConfigError``."""
    entry = next(each for each in search.section.stages if each.name == name)
    section, place = entry.trials[name], search.place(name)
    with search.decoded.origins.placing(place):
        fragments = fragments_named(section.from_, search.run, search.path)
        require_files(fragments, f"{place}.from")
        algorithm = build_algorithm(search, section, place)
        space = stage_space(search, section, algorithm, place)
        tree = without_search(search.tree)
        for fragment in fragments:
            tree = with_fragment(tree, fragment)
        tree = with_settings(tree, section.set, section.max_epoch or getattr(algorithm, "max_epoch", None))
    enqueued = []
    for number, point in enumerate(section.enqueue):
        with search.decoded.origins.placing(f"{place}.enqueue.{number}"):
            enqueued.append(completed(space, tree, point))
    return Stage(
        name,
        search,
        tree,
        algorithm,
        space,
        {name: _WAYS[way] for name, way in section.objectives.items() if not (name in COSTS and hasattr(algorithm, "with_size"))},
        section.constraints or search.section.constraints,
        epochs_of(tree),
        section.trials or 0,
        tuple(enqueued),
        holdout,
        section,
    )


def build_algorithm(search: Search, section: StageSection, place: str) -> Algorithm:
    """Build the algorithm of a stage. Raises ``ConfigError`` for what is wrong with its name and its arguments."""
    try:
        algorithm: Algorithm = build_part(Part(type=section.algorithm, kwargs=section.kwargs), "algorithm", search.tables)
        costs = [name for name in section.objectives if name in COSTS]
        if costs and hasattr(algorithm, "with_size"):
            if len(costs) == len(section.objectives):
                raise UserError(got=", ".join(costs), expected="a metric such as top1 beside it", key="objectives")
            algorithm = algorithm.with_size(costs)
    except UserError as error:
        keys = ("algorithm" if each.key == "type" else each.key.removeprefix("kwargs.") for each in error.problems)
        problems = [replace(each, key=f"{place}.{key}") for each, key in zip(error.problems, keys, strict=True)]
        raise ConfigError(search.decoded.origins.locate(problems)) from error
    return algorithm


def stage_space(search: Search, section: StageSection, algorithm: Algorithm, place: str) -> Space:
    """Read the space of a stage, as the file writes it, or as its function or its algorithm returns it. Raises ``ConfigError``."""
    written = section.space
    if set(written) <= {"type", "kwargs"} and "type" in written:
        with search.decoded.origins.placing(f"{place}.space"):
            written = build_part(written, "space", search.tables, path=f"{place}.space")
    own = getattr(algorithm, "space", None)
    if not written and own is not None:
        written = own()
    try:
        return read_space(written, section.forbid, f"{place}.space")
    except UserError as error:
        raise ConfigError(search.decoded.origins.locate(error.problems)) from error


def epochs_of(tree: MappingNode) -> int:
    """Return ``trainer.max_epoch``. Raises ``UserError`` if the length is not in epochs."""
    trainer = decode(tree).config.trainer
    if trainer.max_epoch is None or trainer.max_iter is not None:
        raise UserError("is not set", expected="the epochs of a trial", key="trainer.max_epoch", fix="A search counts epochs.")
    return trainer.max_epoch
