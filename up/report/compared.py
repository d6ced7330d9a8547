"""Runs and evaluations to compare: their results image by image, on the same images."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from up.data.records import Dataset
from up.errors import UserError
from up.files import best_of_run, existing_run, sha256_of, title_of
from up.intervals import Interval
from up.report.evaluation import evaluated_run
from up.report.folder import RunFolder, open_run
from up.run_files import CONFIG
from up.tasks.report import Outcomes
from up.text import count, some_of

PREDICTIONS = "predictions.csv"
_ALLOW = "Compare the images that all have, with the same labels, with --allow-different-images."
Key = tuple[str, int]  # a file name, and its number among images of that name


@dataclass(frozen=True)
class Compared:
    """A run, or a folder of an evaluation: its results by image, of one head where the net has several.

    ``run``, ``data`` and the metrics are those of a run.
    """

    name: str
    outcomes: Outcomes
    run: RunFolder | None = None
    data: Dataset | None = None
    metrics: Mapping[str, float] | None = None
    intervals: Mapping[str, Interval] | None = None

    @property
    def title(self) -> str:
        """Name of the run, with the head of nets with several."""
        return f"{self.name}{of_head(self.outcomes.head)}"

    def rows(self) -> dict[Key, int]:
        """Return the row of each image."""
        seen: Counter[str] = Counter()
        found: dict[Key, int] = {}
        for row, name in enumerate(self.outcomes.filenames):
            found[name, seen[name]] = row
            seen[name] += 1
        return found

    def taken(self, rows: Sequence[int]) -> Compared:
        """Select rows."""
        old = self.outcomes
        index = None if old.index is None else [old.index[row] for row in rows]
        names, labels, predictions = ([values[row] for row in rows] for values in (old.filenames, old.labels, old.predictions))
        correct = [old.correct[row] for row in rows]
        return replace(self, outcomes=Outcomes(names, labels, predictions, correct, index, old.head))

    def file_of(self, row: int) -> Path | None:
        """Return the image file of a row, where it is known."""
        path_of = getattr(self.data, "path_of", None)
        if path_of is None or self.outcomes.index is None:
            return None
        path = Path(path_of(self.outcomes.index[row]))
        return path.resolve() if path.is_file() else None


def of_head(head: int | None) -> str:
    """Return ``, head N``; an empty text for nets with one head."""
    return "" if head is None else f", head {head}"


def head_slug(head: int | None) -> str:
    """Return ``-headN``, the end of a section's name; an empty text for nets with one head."""
    return "" if head is None else f"-head{head}"


def open_compared(paths: Sequence[Path]) -> list[list[Compared]]:
    """Open runs and evaluation folders, and evaluate runs without stored results; returns, for each head, all of them.

    Raises ``UserError``.
    """
    if len({existing_run(path).resolve() for path in paths}) < len(paths):
        raise UserError(f"got {some_of(paths)}", expected="different runs", fix="Name each once.")
    short = [title_of(path) for path in paths]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    opened = [_opened(path, name) for path, name in zip(paths, names, strict=True)]
    for each in opened:
        if len(each) != len(opened[0]):
            what = f"{opened[0][0].name} has {count(len(opened[0]), 'head')}, {each[0].name} has {len(each)}"
            raise UserError(what, expected="the same number of heads in all runs")
    return [list(together) for together in zip(*opened, strict=True)]


def _opened(path: Path, name: str) -> list[Compared]:
    """Return the results of each head."""
    if path.is_dir() and not (path / CONFIG).is_file():
        files = _predictions_in(path)
        if not files:
            what = f"{path}: contains neither {CONFIG} nor {PREDICTIONS}"
            raise UserError(what, expected="a run folder, or a folder that `up eval` wrote", fix="Name its --out folder.")
        read = [read_outcomes(file) for file in files]
        return [Compared(name, replace(each, head=at if len(read) > 1 else None)) for at, each in enumerate(read)]
    run = open_run(path)
    checkpoint = best_of_run(run.folder)
    if checkpoint is None:
        raise UserError(f"{run.folder}: has no checkpoint yet", expected="a trained run", fix="Train it first.")
    with run.experiment.plugin_errors():
        evaluation = evaluated_run(run.experiment, checkpoint, run.folder, keep=False)
        outcomes = run.experiment.task.outcomes(evaluation.evidence.evaluator, evaluation.evidence.data)
    of_heads = [outcomes] if isinstance(outcomes, Outcomes) else [*(outcomes or ())]
    if not of_heads:
        what = f"{run.folder}: the task {run.experiment.task.name} has no results image by image"
        raise UserError(what, expected="labelled test images, and a task that defines `outcomes` (docs/add_a_task.md)")
    data, metrics, intervals = evaluation.evidence.data, evaluation.metrics, evaluation.intervals
    return [Compared(name, each, run, data, metrics, intervals) for each in of_heads]


def _predictions_in(folder: Path) -> list[Path]:
    """List the file of predictions of each head."""
    heads = len([*folder.glob("predictions_head*.csv")])
    several = [folder / f"predictions_head{head}.csv" for head in range(heads)]
    return [folder / PREDICTIONS] if (folder / PREDICTIONS).is_file() else [file for file in several if file.is_file()]


def read_outcomes(path: Path) -> Outcomes:
    """Read ``predictions.csv`` of an evaluation. Raises ``UserError`` for one without labels or rows."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot be read ({error})", file=path, fix="Write it again with `up eval`.") from error
    missing = [name for name in ("filename", "label", "prediction", "correct") if not rows or rows[0].get(name) is None]
    if missing:
        got = "no images" if not rows else f"no column {missing[0]!r}"
        raise UserError(f"got {got}", expected="predictions of labelled images, as `up eval` writes them", file=path)
    columns = {name: [row[name] for row in rows] for name in ("filename", "label", "prediction")}
    return Outcomes(columns["filename"], columns["label"], columns["prediction"], [row["correct"] == "1" for row in rows])


def same_images(compared: Sequence[Compared], *, allow_different: bool) -> tuple[list[Compared], str]:
    """Return the results of the images that all have, in one order, and how the images are known to be the same.

    Raises ``UserError`` for other images or labels, unless ``allow_different``, and always where no image is shared.
    """
    first, rows = compared[0], [each.rows() for each in compared]
    shared = [key for key in rows[0] if all(key in of_each for of_each in rows)]
    labels = [[each.outcomes.labels[of_each[key]] for key in shared] for each, of_each in zip(compared, rows, strict=True)]
    agreeing = [at for at, each in enumerate(zip(*labels, strict=True)) if len(set(each)) == 1]
    taken = [each.taken([of_each[shared[at]] for at in agreeing]) for each, of_each in zip(compared, rows, strict=True)]
    changed = _changed(taken)
    kept = [row for row in range(len(agreeing)) if row not in changed]
    if not allow_different:
        for each, of_each in zip(compared[1:], rows[1:], strict=True):
            _expect_same(first, each, rows[0], of_each)
        if changed:
            name = first.outcomes.filenames[agreeing[min(changed)]] if shared else ""
            raise UserError(f"{count(len(changed), 'image')} of the same name differ in content, such as {name}", fix=_ALLOW)
    if not kept:
        raise UserError(
            f"{some_of(each.name for each in compared)} have no image in common", expected="runs tested on the same images"
        )
    how = "the same names and labels"
    if all(each.data is not None for each in taken):
        how += ", and the same files or contents"
    left_out = max(len(of_each) for of_each in rows) - len(kept)
    how += f"; {count(left_out, 'image')} left out that not all have" if left_out else ""
    return [each.taken(kept) for each in taken], how


def _expect_same(first: Compared, other: Compared, of_first: Mapping[Key, int], of_other: Mapping[Key, int]) -> None:
    shared = of_first.keys() & of_other.keys()
    if len(shared) < max(len(of_first), len(of_other)):
        what = f"{first.name} and {other.name} were tested on different images"
        got = f"{len(of_first):,} and {len(of_other):,}, of which {len(shared):,} are the same"
        raise UserError(f"{what}: {got}", fix=_ALLOW)
    differ = [key for key in of_first if first.outcomes.labels[of_first[key]] != other.outcomes.labels[of_other[key]]]
    if differ:
        name, row = differ[0][0], of_first[differ[0]]
        labels = f"{first.outcomes.labels[row]!r} and {other.outcomes.labels[of_other[differ[0]]]!r}"
        what = f"{first.name} and {other.name} have different labels of {count(len(differ), 'image')}, such as {name}: {labels}"
        raise UserError(what, fix=_ALLOW)


def _changed(taken: Sequence[Compared]) -> set[int]:
    """Find the rows whose files differ in content; files of one path, and those that are not known, do not."""
    changed = set()
    for row in range(len(taken[0].outcomes.filenames)):
        files = {file for each in taken if (file := each.file_of(row)) is not None}
        if len(files) > 1 and len({sha256_of(file) for file in files}) > 1:
            changed.add(row)
    return changed
