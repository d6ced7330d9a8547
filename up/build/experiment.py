"""Load a YAML file with overrides as a frozen, checked experiment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from up.build.record import read_record
from up.config.argument import NoEffect
from up.config.parts import Tables, check_part
from up.config.plugins import extended, make_importable
from up.config.section import Part
from up.config.signature import signature_of
from up.config.walk import Place, named_paths, walk_part
from up.data.readers import READERS
from up.data.records import DATASET_CONTRACT
from up.data.sampler import SAMPLERS
from up.data.transforms.table import TRANSFORMS
from up.distill.losses import MIMIC_LOSSES
from up.distill.section import GRAPHS, is_distillation, weights_of_teachers
from up.engine.hooks import HOOKS
from up.engine.step import RUNNERS
from up.errors import Problem, UserError
from up.models.backbones import BACKBONES
from up.models.init import INITIALIZERS
from up.models.norm import NORMS
from up.optim.groups import option_problems
from up.optim.optimizers import OPTIMIZERS
from up.optim.schedules import SCHEDULES
from up.registry import Registry
from up.run_files import CONFIG
from up.schema.decode import load_config, missing_at, missing_start_weights
from up.schema.search import ALGORITHMS, SPACES
from up.supernet.section import supernet_problems
from up.tasks.declaration import check_parts, error_at, is_ours, load_task
from up.tasks.experiment import Experiment, placed_parts
from up.tasks.task import TASKS, AnyTask
from up.tracking.trackers.tracker import TRACKERS

ENTRY_POINTS = "up.tasks"
ENGINE_TABLES: Mapping[str, Registry] = {
    "backbone": BACKBONES.extended(dict.fromkeys(GRAPHS, "up.distill.onnx_teacher:OnnxTeacher")),
    "norm": NORMS,
    "initializer": INITIALIZERS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULES,
    "sampler": SAMPLERS,
    "dataset": Registry("dataset", {}, contract=DATASET_CONTRACT),
    "hook": HOOKS,
    "tracker": TRACKERS,
    "batch_fn": Registry("batch_fn", {}),
    "image_reader": READERS,
    "transform": TRANSFORMS,
    "runner": RUNNERS.extended(
        {"kd": "up.distill.runner:KDRunner", "darts": "up.supernet.runner:DartsRunner", "cars": "up.supernet.cars:CarsRunner"}
    ),
    "mimic_loss": MIMIC_LOSSES,
    "algorithm": ALGORITHMS,
    "space": SPACES,
}


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override, decode and check. Raises ``ConfigError`` with every problem at once; nothing is created.

    Plug-ins may be beside the file; of ``config.yaml`` in a run folder, beside the file that it was trained from.
    """
    decoded = load_config(path, overrides)
    if path.name == CONFIG and isinstance(trained_from := read_record(path.parent).get("config"), str):
        make_importable(Path(trained_from).parent)
    runtime = decoded.config.runtime
    with decoded.origins.placing("runtime.task_names"):
        task = find_task(runtime.task_names)
    with decoded.origins.placing("runtime.plugins"):
        tables = all_tables(task, runtime.plugins, path.parent)
    experiment = Experiment(path, decoded, task, tables)
    of_runner = [*distillation_problems(experiment), *supernet_problems(experiment)]
    placed = list(placed_parts(experiment))
    experiment.raise_if_any([*part_problems(experiment, placed), *group_problems(experiment), *of_runner])
    return replace(experiment, decoded=decoded._replace(notes=[*decoded.notes, *part_notes(experiment, placed)]))


def find_task(name: str) -> AnyTask:
    """Return the task called ``name``, ours or an entry point ``up.tasks`` of an installed package.

    ``kd_<task>`` is the task itself: the runner distils.
    """
    others = tasks_declared(tuple((folder, _changed(folder)) for folder in sys.path))
    name = name if name in others else name.removeprefix("kd_")
    if name in others:
        return load_task(others[name])
    return TASKS.get(name)  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def tasks_declared(folders: tuple[tuple[str, object], ...]) -> Mapping[str, EntryPoint]:
    """Return the tasks that installed packages declare: read again once one of the ``folders`` of ``sys.path`` has changed."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _changed(folder: str) -> tuple[str, int] | None:
    """Where a folder is and when something was added to it or removed; None if there is none."""
    try:
        return os.path.abspath(folder), os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return None


def all_tables(task: AnyTask, modules: Sequence[str], folder: Path | None = None) -> dict[str, Registry]:
    """Return the tables of engine and task, extended by the modules of ``runtime.plugins`` and of the variable PLUGINPATH.

    Modules are imported from the working folder and from ``folder``, that of the configuration, too.
    """
    from_environment = [name for name in os.environ.get("PLUGINPATH", "").split(":") if name]
    if modules or from_environment:
        make_importable(folder)
    tables = dict(ENGINE_TABLES)
    module = type(task).__module__
    for kind, parts in task.parts.items():
        own = parts if isinstance(parts, Registry) else Registry(kind, parts)
        try:
            tables[kind] = tables.get(kind, Registry(kind, {})).joined(own, plugin=None if is_ours(task) else module)
        except UserError as error:
            raise error_at(type(task), f"{module}.{type(task).__name__}.parts: {error}") from None
    if not is_ours(task):
        check_parts(task, tables)
    tables = extended(tables, modules)
    try:
        return extended(tables, from_environment)
    except UserError as error:  # of no line of the file
        raise UserError.of(each.placed("PLUGINPATH", None) for each in error.problems) from error


def part_problems(experiment: Experiment, placed: Iterable[tuple[str, Part, str]]) -> Iterator[Problem]:
    """List problems with types and arguments of parts, anywhere in the configuration."""
    for path, part, table in placed:
        yield from check_part(part, table, experiment.tables, path)


def part_notes(experiment: Experiment, placed: Iterable[tuple[str, Part, str]]) -> Iterator[Problem]:
    """List each accepted argument that has no effect, at its first place."""
    notes: dict[str, Problem] = {}
    for path, part, table in placed:
        for place in walk_part(part, table, experiment.tables, path):
            for note in _notes_on(place, experiment.tables):
                notes.setdefault(note.what, note)
    return iter(experiment.decoded.origins.locate(notes.values()))


def _notes_on(place: Place, tables: Tables) -> Iterator[Problem]:
    """Yield the ``config_note`` of a class, and a note for an argument that has no effect."""
    note = getattr(place.target(tables), "config_note", None)
    if note:
        yield Problem(f"{place.type}: {note}", key=f"{place.path}.type")
    parameter = place.parameter
    unused = parameter.marker(NoEffect) if parameter is not None else None
    if parameter is not None and unused is not None and place.value not in (None, parameter.default):
        yield Problem(f"{parameter.name} of {place.owner} has no effect: {unused.reason}", key=place.path)


def group_problems(experiment: Experiment) -> Iterator[Problem]:
    """List settings of parameter groups that the optimizer does not accept."""
    part, table = experiment.config.trainer.optimizer, experiment.tables["optimizer"]
    if part is None:
        return
    try:
        takes = signature_of(table.get(part.type)).parameters
    except UserError:  # an unknown type, which ``part_problems`` reports
        return
    for problem in option_problems(part.pconfig, part.special_param_group, part.type, takes):
        yield replace(problem, key=f"trainer.optimizer.{problem.key}")


def missing_files(experiment: Experiment) -> Iterator[Problem]:
    """List missing files and folders of the configuration, each with its key."""
    config = experiment.config
    for name in ("train", "test"):
        source = getattr(config.dataset, name)
        if source is not None:
            for key, path in named_paths(source.dataset, "dataset", experiment.tables):
                yield from missing_at(f"dataset.{name}.dataset.{key}", path)
            if source.subset is not None:
                yield from missing_at(f"dataset.{name}.subset", source.subset)
    yield from missing_start_weights(config, experiment.folder)
    for key, file in weights_of_teachers(experiment).values():
        if file is None or not file.startswith("timm:"):
            yield from missing_at(key, file)


def distillation_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report a distilling runner without ``mimic``."""
    runner = experiment.config.runtime.runner.type
    if runner in experiment.tables["runner"] and is_distillation(experiment) and experiment.config.mimic is None:
        what = f"is missing: the runner {runner!r} needs teachers and a distillation loss"
        yield Problem(what, key="mimic", fix="Add the section (docs/distill.md).")
