"""The stage ``full_train``: the candidates on all of ``dataset.train``, evaluated once on ``dataset.test``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from statistics import mean

from up.engine.child import evaluations_in
from up.engine.stopping import smaller_is_better
from up.errors import UserError
from up.intervals import half_width
from up.schema.search import FULL_TRAIN, ConstraintsSection
from up.search.algorithm import Direction, History, Suggestion, Trial, Work
from up.search.fragments import write_table
from up.search.settings import fragments_named, require_files, with_settings, without_search
from up.search.space import Space
from up.search.stages import Search, Stage, epochs_of
from up.types import Json

CONTROL = "own_values"
CHOSEN = "best"


class Candidates:
    """Trains each candidate once for each seed: ``candidates`` are fragments by name, the last one the file itself."""

    def __init__(self, candidates: Mapping[str, Sequence[Path]], seeds: int, first_seed: int) -> None:
        self._works = [
            Work(
                note={
                    "candidate": name,
                    "fragments": [str(path) for path in paths],
                    "seed": first_seed + seed,
                    "folder": name if seeds == 1 else f"{name}/seed{first_seed + seed}",
                }
            )
            for name, paths in candidates.items()
            for seed in range(seeds)
        ]

    def suggest(self, history: History) -> Suggestion:
        """Return the next candidate and seed."""
        return self._works[history.number] if history.number < len(self._works) else None

    def observe(self, trial: Trial) -> None:
        """Take no note: the history has the trial."""

    def settings(self, trial: Trial, history: History, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the seed, and the only evaluation at the end."""
        return {
            "runtime.random_seed": trial.note["seed"],
            "trainer.test_freq": 10**6,
            "trainer.eval_interval": None,
            "trainer.early_stopping": None,
        }


def final_stage(search: Search) -> Stage:
    """Read the stage ``full_train``, whose fragments must exist. Raises ``ConfigError``."""
    section = search.section.stages[search.names.index(FULL_TRAIN)].full_train
    assert section is not None
    place = search.place(FULL_TRAIN)
    with search.decoded.origins.placing(place):
        shared = [path for names in (section.hparams, section.augment) for path in fragments_named(names, search.run, search.path)]
        found = [*dict.fromkeys(fragments_named(section.candidates, search.run, search.path))][: section.top]
        if section.candidates is not None and not found:
            raise UserError("has no candidate", key=f"{place}.candidates", fix="Run the stage that finds them first.")
        require_files([*shared, *found], place)
        candidates = {name: [path, *shared] for name, path in named(found).items()}
        candidates = candidates or {"candidate": shared}
        if section.control and any(candidates.values()):
            candidates[CONTROL] = []
        tree = without_search(search.tree)
        epochs = epochs_of(with_settings(tree, section.set))
    algorithm = Candidates(candidates, section.seeds, search.seed)
    way: Direction = "minimize" if smaller_is_better(section.select) else "maximize"
    objectives = {section.select: way}
    none = ConstraintsSection()
    return Stage(FULL_TRAIN, search, tree, algorithm, Space(()), objectives, none, epochs, 0, section=section)


def named(fragments: Sequence[Path]) -> dict[str, Path]:
    """Name each candidate after its file, ``best.yaml`` also after its folder; a name that is taken gets a number."""
    found: dict[str, Path] = {}
    for path in fragments:
        name = path.stem if path.stem != "best" else f"{path.parent.name}_best"
        names = chain([name], (f"{name}_{number}" for number in count(2)))
        found[next(each for each in names if each != CONTROL and each not in found)] = path
    return found


def write_candidates(stage: Stage, trials: Sequence[Trial], tell: Callable[[str], object]) -> None:
    """Write candidates.csv, and link ``best`` to the winner. Raises ``UserError`` if no candidate was trained."""
    rows = rows_of(stage, trials)
    write_table(stage.folder / "candidates.csv", rows)
    winner = winner_of(rows)
    if winner is None:
        raise UserError(
            "no candidate was trained", key=stage.search.place(stage.name), fix=f"See {stage.folder / 'candidates.csv'}."
        )
    link = stage.folder / CHOSEN
    if link.is_symlink():
        link.unlink()
    os.symlink(winner["folder"], link)
    tell(f"{FULL_TRAIN}: {winner['candidate']} is the best candidate: {result_of(stage, rows)} on dataset.test")


def winner_of(rows: Sequence[Mapping[str, Json]]) -> Mapping[str, Json] | None:
    """Return the row of the best candidate, which the file itself is not; None where none was trained."""
    return next((row for row in rows if row["candidate"] != CONTROL and row["mean"] is not None), None)


def result_of(stage: Stage, rows: Sequence[Mapping[str, Json]]) -> str:
    """Return the mean of the winner over its seeds, and that of the file itself, if any: ``top1 91.3 (own_values: 90.8)``."""
    winner = winner_of(rows)
    assert winner is not None
    own = next((f" ({CONTROL}: {row['mean']:.4g})" for row in rows if row["candidate"] == CONTROL and row["mean"] is not None), "")
    return f"{next(iter(stage.objectives))} {winner['mean']:.4g}{own}"


def rows_of(stage: Stage, trials: Sequence[Trial]) -> list[dict[str, Json]]:
    """Return the candidates, the best first: mean over the seeds, half of its 95 % interval, the folder of the best seed, and its
    other metrics.

    ``difference`` is that of the mean from the file itself, over the seeds of both, ``difference_half`` half of its interval.
    """
    by_name: dict[str, list[Trial]] = {}
    for trial in trials:
        by_name.setdefault(trial.note["candidate"], []).append(trial)
    (way,) = stage.objectives.values()
    sign = 1 if way == "maximize" else -1
    rows: list[dict[str, Json]] = []
    own = _by_seed(by_name.get(CONTROL, ()))
    for name, runs in by_name.items():
        complete = [each for each in runs if each.state == "complete" and each.final]
        results = [each.final[0] for each in complete if each.final]
        best = max(complete, key=lambda each: sign * (each.final or (0.0,))[0], default=None)
        by_seed = _by_seed(runs)
        differences = [by_seed[seed] - own[seed] for seed in by_seed if seed in own] if name != CONTROL else []
        metrics = evaluations_in(stage.trial_folder(best)) if best is not None else {}
        rows.append(
            {
                "candidate": name,
                "mean": mean(results) if results else None,
                "half": half_width(results),
                "seeds": len(results),
                "difference": mean(differences) if differences else None,
                "difference_half": half_width(differences),
                "folder": str(stage.trial_folder(best).relative_to(stage.folder)) if best is not None else None,
                "seconds": round(sum(each.seconds for each in runs), 1),
                **(metrics[max(metrics)] if metrics else {}),
            }
        )
    return sorted(rows, key=lambda row: (row["mean"] is None, -sign * (row["mean"] or 0.0)))


def _by_seed(trials: Sequence[Trial]) -> dict[int, float]:
    return {each.note["seed"]: each.final[0] for each in trials if each.state == "complete" and each.final}
