"""The report of a search: stages, control rows, importance of parameters, cost, and the commands that repeat the winner."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from up.engine.stopping import smaller_is_better
from up.run_files import CONFIG
from up.schema.search import FULL_TRAIN
from up.search.algorithm import Direction, History, Trial
from up.search.controls import FOUND, OWN, control_stage
from up.search.final import CHOSEN, CONTROL, winner_of
from up.search.fragments import front_of
from up.search.stages import Search, Stage
from up.search.worker import history_of, open_study
from up.text import count, duration
from up.types import Json

MIN_FOR_IMPORTANCE = 8  # complete trials
_NO_TEST = "There is no holdout: the trials were evaluated on dataset.test, and the winner was chosen on the reported data."


@dataclass(frozen=True)
class StageReport:
    """Content of the report about a stage of trials."""

    stage: Stage
    history: History
    controls: Sequence[Trial]
    importance: Mapping[str, float] = field(default_factory=dict)
    lineage: Sequence[Mapping[str, str]] = ()

    @property
    def front(self) -> list[Trial]:
        """The best trials, the best first."""
        return front_of(self.history)

    @property
    def seconds(self) -> float:
        """Time of all trials, controls included."""
        return sum(each.seconds for each in (*self.history.trials, *self.controls))

    @property
    def states(self) -> str:
        """Number of trials by state."""
        counted = Counter(each.state for each in self.history.trials)
        return ", ".join(f"{number} {state}" for state, number in counted.most_common())

    @property
    def result(self) -> float | None:
        """The best value of the first objective; for a network that a supernet found, its value after training on its own.

        None where it is not known: an accuracy with shared weights compares with no other.
        """
        if any(each.note["control"] == FOUND for each in self.controls):
            [(_, _, found)] = self._rows([FOUND])
            return found
        best = self.history.best
        return best.final[0] if best is not None and best.final else None

    def control_rows(self) -> list[tuple[str, int, float | None]]:
        """Return each control: its name, its complete trials, and the best value of the first objective."""
        return self._rows(name for name in dict.fromkeys(str(each.note["control"]) for each in self.controls) if name != FOUND)

    def _rows(self, names: Iterable[str]) -> list[tuple[str, int, float | None]]:
        rows = []
        for name in names:
            trained = [each for each in self.controls if each.note["control"] == name and each.state == "complete"]
            values = [each.final[0] for each in trained if each.final]
            rows.append((name, len(values), self._best(values)))
        return rows

    def verdict(self) -> str:
        """Say whether the search beats its controls."""
        if self.history.best is None:
            return "No trial was completed."
        if self.result is None:
            return "The training of the network found was not completed, so a gain cannot be shown."
        beaten = [name for name, _, value in self.control_rows() if value is not None and not self._beats(value)]
        if beaten:
            return f"The search does not beat its control: {', '.join(beaten)}."
        lacking = [name for name, _, value in self.control_rows() if value is None]
        if len(lacking) == len(self.control_rows()):
            return "No control was completed, so a gain cannot be shown."
        but = f" But no trial of {', '.join(lacking)} was completed." if lacking else ""
        return f"The search beats its controls.{but}"

    def _beats(self, value: float) -> bool:
        return self.result is not None and self.result != value and self._best([self.result, value]) == self.result

    def _best(self, values: Sequence[float]) -> float | None:
        better = max if self.history.directions[0] == "maximize" else min
        return better(values, default=None)


def report_of(stage: Stage) -> StageReport:
    """Read what is stored of a stage."""
    study = open_study(stage)
    history = history_of(stage, study)
    controls = control_stage(stage)
    trained = open_study(controls).trials() if controls is not None else []
    lineage = stage.folder / "lineage.csv"
    rows: list[dict[str, str]] = []
    if lineage.exists():
        with lineage.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    return StageReport(stage, history, trained, importance_of(history), rows)


def importance_of(history: History) -> dict[str, float]:
    """Return the importance of each key for the first objective (PED-ANOVA, Watanabe et al. 2023); empty for few trials."""
    complete = [each for each in history.complete if each.final]
    shared = [path for path in history.space.names if all(path in each.point for each in complete)]
    if len(complete) < MIN_FOR_IMPORTANCE or not shared or len({each.final for each in complete}) < 2:
        return {}
    import warnings

    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=history.directions[0])
    for trial in complete:
        study.add_trial(
            optuna.trial.create_trial(
                params=history.space.to_optuna({path: trial.point[path] for path in shared}),
                distributions={path: history.space[path].distribution() for path in shared},
                value=(trial.final or (0.0,))[0],
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(value) for name, value in found.items()}


def markdown(search: Search, reports: Sequence[StageReport], rows: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    """Yield the lines of report.md."""
    yield f"# Search of {search.path.name}"
    total = sum(each.seconds for each in reports) + sum(row["seconds"] for row in rows)
    yield f"\nTime of all trainings: {duration(total)}. {honesty(search, rows)}"
    for report in reports:
        yield from _stage_lines(report)
    if rows:
        yield from _final_lines(search, rows)
    yield "\n## Commands\n"
    yield from (f"    {command}" for command in commands(search, rows))


def honesty(search: Search, rows: Sequence[Mapping[str, Json]]) -> str:
    """Say on which data the trials and the winner were chosen; ``rows`` are those of ``full_train``, if there is one."""
    if not search.section.holdout:
        return _NO_TEST
    several = sum(row["candidate"] != CONTROL for row in rows) > 1
    chosen = " The winner among the candidates was chosen on dataset.test, the data that it is reported on." if several else ""
    return f"Trials were evaluated on {search.section.holdout:.0%} of dataset.train, which they did not train on.{chosen}"


def _stage_lines(report: StageReport) -> Iterator[str]:
    stage, best = report.stage, report.history.best
    name = next(iter(stage.objectives))
    yield f"\n## {stage.name}: {getattr(stage.section, 'algorithm', '')}\n"
    yield f"{count(len(report.history.trials), 'trial')} ({report.states}), {duration(report.seconds)}."
    if best is not None:
        yield f"Best: trial {best.number}, {values_text(stage, best)}: {stage.text_of(best.point) or 'the file itself'}."
    yield f"\n| row | trials | {name} |\n|---|---|---|"
    complete = len(report.history.complete)
    yield f"| **{getattr(stage.section, 'algorithm', 'search')}** | {complete} | {_shown(report.result)} |"
    for control, trials, value in report.control_rows():
        yield f"| control: {control} | {trials} | {_shown(value)} |"
    if any(each.note["control"] == FOUND for each in report.controls):
        yield "\nAll rows are networks trained by themselves, for as many epochs as the supernet."
    yield f"\n{report.verdict()}"
    if len(stage.objectives) > 1:
        yield f"\nPareto front, {count(len(report.front), 'trial')}:\n\n| trial | {' | '.join(stage.objectives)} |"
        yield f"|---|{'---|' * len(stage.objectives)}"
        for trial in report.front:
            yield f"| {trial.number} | {' | '.join(_shown(value) for value in trial.final or ())} |"
    if report.importance:
        shares = ", ".join(f"{path} {share:.2f}" for path, share in report.importance.items())
        yield f"\nImportance for {name} (PED-ANOVA): {shares}"
    if report.lineage:
        yield f"\nLineage of the winner: {count(len(report.lineage), 'step')}, see {stage.name}/lineage.csv."


def _final_lines(search: Search, rows: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    section = search.section.stages[-1].full_train
    assert section is not None
    yield f"\n## {FULL_TRAIN}\n\n| candidate | seeds | {section.select} on dataset.test | time |\n|---|---|---|---|"
    for row in rows:
        name = f"control: {OWN}" if row["candidate"] == CONTROL else row["candidate"]
        yield f"| {name} | {row['seeds']} | {with_half(row['mean'], row['half'])} | {duration(row['seconds'])} |"
    if any(row["half"] is not None for row in rows):
        yield "\nMean ± half of its 95 % interval over the seeds (Student's t)."
    yield from (f"\n{line}" for line in final_verdict(rows, section.select))


def final_verdict(rows: Sequence[Mapping[str, Json]], select: str) -> Iterator[str]:
    """Say whether the winner beats the file itself in the metric ``select``, by the differences of runs with the same seed."""
    winner = winner_of(rows)
    if winner is None or winner["difference"] is None:
        return
    difference, half = winner["difference"], winner["difference_half"]
    beats = difference < 0 if smaller_is_better(select) else difference > 0
    if half is None:
        certainty = "One seed each: the difference may be noise. `seeds: 3` gives it an interval."
    else:
        certainty = "It is within noise." if abs(difference) <= half else "It is larger than the noise of the seeds."
    says = "beats" if beats else "does not beat"
    yield f"The winner {says} the file itself ({OWN}): difference {with_half(difference, half)}. {certainty}"


def with_half(value: float | None, half: float | None) -> str:
    """Format a value with half of its interval."""
    return _shown(value) if half is None else f"{_shown(value)} ± {half:.2g}"


def commands(search: Search, rows: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    """Yield the commands that repeat the search and its winner, and export it."""
    words = ["python", "-m", "up", "search", "--config", str(search.path)]
    yield shlex.join([*words, *(["--opts", *search.overrides] if search.overrides else [])])
    if rows:
        best = search.run / FULL_TRAIN / CHOSEN
        again = ["--config", str(best / CONFIG)]
        yield shlex.join(["python", "-m", "up", "train", *again, "--opts", "saver.save_dir=runs/repeated"])
        yield shlex.join(["python", "-m", "up", "to_onnx", *again])


def values_text(stage: Stage, trial: Trial) -> str:
    """Format the objectives of a trial."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in zip(stage.objectives, trial.final or (), strict=False))


def _shown(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"


def best_so_far(values: Sequence[float], way: Direction) -> list[float]:
    """Return the best of the first values, for each number of them."""
    better = max if way == "maximize" else min
    return [better(values[: at + 1]) for at in range(len(values))]
