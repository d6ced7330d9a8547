"""Results of a stage of trials: fragments of the best trials, and tables of all of them."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from up.config.nodes import PlainDumper
from up.errors import UserError
from up.files import write_text
from up.pareto import fronts
from up.run_files import FRAGMENTS
from up.search.algorithm import History, Trial
from up.search.found import BEST, PARETO, take_over
from up.search.settings import plain_of, write_fragment
from up.search.stages import Stage
from up.types import Json

_TOP = 10  # trials in pareto/ where there is one objective


def write_fragments(stage: Stage, trials: Sequence[Trial]) -> set[int]:
    """Write best.yaml, pareto/, the tables and the algorithm's own fragments; returns the numbers of the trials in them.

    A training that found networks by itself leaves its fragments in ``fragments/`` of its folder; those of the best trial that are
    within the limits are the stage's. Raises ``UserError`` if no trial is complete.
    """
    space, ways = stage.space, list(stage.objectives.values())
    history = History(trials, space, ways, stage.search.seed, stage.max_epoch, stage.limit)
    write_table(stage.folder / "trials.csv", (row_of(stage, each) for each in trials))
    best = history.best
    if best is None:
        raise UserError("no trial was completed", key=stage.search.place(stage.name), fix=f"See {stage.folder / 'trials.csv'}.")
    front = front_of(history)
    folder = stage.folder / PARETO
    shutil.rmtree(folder, ignore_errors=True)
    for rank, trial in enumerate(front):
        write_fragment(folder / f"{rank:02}_trial{trial.number:04}.yaml", stage.settings(trial, history), header_of(stage, trial))
    write_fragment(stage.folder / BEST, stage.settings(best, history), header_of(stage, best))
    write_table(stage.folder / "pareto.csv", (row_of(stage, each) for each in front))
    own = getattr(stage.algorithm, "fragments", None)
    for name, content in own(history, plain_of(stage.tree)).items() if own is not None else ():
        _write(stage.folder / name, content)
    if stage.finds_networks:
        take_over(stage, stage.trial_folder(best) / FRAGMENTS)
    return {best.number, *(trial.number for trial in front)}


def front_of(history: History) -> list[Trial]:
    """Return the complete trials that no other one beats in all objectives, the best first; with one objective the best ten."""
    complete = sorted((each for each in history.complete if each.final), key=lambda each: (history.losses(each), each.number))
    if len(history.directions) == 1 or not complete:
        return complete[:_TOP]
    return [complete[at] for at in fronts(np.array([history.losses(each) for each in complete]))[0]]


def header_of(stage: Stage, trial: Trial) -> str:
    """Say which trial a fragment is of, and with which results."""
    values = ", ".join(f"{name} {value:.6g}" for name, value in zip(stage.objectives, trial.final or (), strict=True))
    return f"Trial {trial.number} of {stage.name}: {values} at epoch {trial.epoch}."


def row_of(stage: Stage, trial: Trial) -> dict[str, Json]:
    """Return a row of trials.csv."""
    return {
        "number": trial.number,
        "state": trial.state,
        "epoch": trial.epoch,
        "seconds": round(trial.seconds, 1),
        **dict(zip(stage.objectives, trial.final or (None,) * len(stage.objectives), strict=True)),
        **{name: value for name, value in trial.costs.items() if name not in stage.objectives},
        **{path: trial.point.get(path) for path in stage.space.names},
        "parent": trial.parent,
        "folder": str(stage.trial_folder(trial).relative_to(stage.search.run)),
        "reason": trial.reason,
    }


def write_table(path: Path, rows: Iterable[Mapping[str, Json]]) -> None:
    """Write rows as CSV; a column for each key of any row."""
    listed = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in listed for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_text(path, text.getvalue())


def _write(path: Path, content: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        write_table(path, content)
    else:
        write_text(path, yaml.dump(content, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120))
