"""The files that an evaluation leaves behind."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from up.errors import StorageError, UserError
from up.figures import missing_matplotlib
from up.files import write_atomically, write_bytes
from up.tasks.cls.evaluate import scoring
from up.tasks.cls.evaluate.confusion import LARGEST, confusion_figure, confusion_matrix
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.predictions import UNREADABLE, HeadPredictions, Predictions
from up.tasks.cls.evaluate.results import answer_of, result_lines, rounded
from up.text import count

Names = Sequence[str] | Sequence[Sequence[str]]
Rows = Iterable[Sequence[object]]


def write_reports(
    evaluator: ImageNetEvaluator,
    folder: Path,
    class_names: Names | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    save_result: bool = False,
) -> list[Path]:
    """Write what there is to say about an evaluation into ``folder``, and return the files written.

    Always ``metrics.json`` (``metrics``, or what the evaluator computes) and ``predictions.csv``; with labels
    ``per_class.csv``, ``confusion.csv`` and, up to 1000 classes and with matplotlib, ``confusion.png``; with ``save_result``
    ``results.txt``, a JSON object a line; with the evaluator's ``bad_case_analyse`` the wrong images. Several heads
    have ``_head0`` in the names. Percent. Each file appears whole or not at all.
    ``class_names``: one list, or one a head; those of the evaluator, then the numbers, when left out.
    Errors: ``UserError`` when there are not as many names as classes, ``StorageError`` when a file cannot be written.
    """
    predictions = evaluator.predictions
    given = class_names if class_names is not None else evaluator.class_names
    names = [_names_of(given, number, predictions) for number in range(len(predictions.heads))]
    figures = evaluator.compute() if metrics is None else metrics
    _make(folder)
    written = [_write_json(folder / "metrics.json", figures)]
    for number, head in enumerate(predictions.heads):
        suffix = f"_head{number}" if len(predictions.heads) > 1 else ""
        written += _write_head(predictions, head, names[number], folder, suffix)
        if evaluator.bad_case_analyse and head.gt is not None:
            path = folder / (evaluator.analysis_json or "bad_cases.json")
            _make(path.parent)
            wrong = bad_cases(predictions, head, names[number])
            written.append(_write_json(path.with_stem(path.stem + suffix), wrong))
    if save_result:
        written.append(_write_text(folder / "results.txt", result_lines(predictions)))
    return written


def bad_cases(predictions: Predictions, head: HeadPredictions, names: Sequence[str]) -> list[dict[str, Any]]:
    """The images that a head got wrong, the surest first; with sets of labels, what was missed and what was added."""
    assert head.gt is not None, "a head without labels has no bad cases"
    if head.gt.ndim == 2:
        predicted = scoring.predicted_sets(head)
        wrong = np.flatnonzero((predicted != head.gt).any(axis=1))
        return [
            {
                "filename": predictions.filename[i],
                "missed": [names[c] for c in np.flatnonzero(head.gt[i] & ~predicted[i]).tolist()],
                "added": [names[c] for c in np.flatnonzero(predicted[i] & ~head.gt[i]).tolist()],
            }
            for i in wrong
        ]
    wrong = np.flatnonzero(head.preds != head.gt)
    surest_first = wrong[np.argsort(-head.topk_score[wrong, 0], kind="stable")]
    return [
        {
            "filename": predictions.filename[i],
            "label": int(head.gt[i]),
            "label_name": names[int(head.gt[i])],
            "prediction": int(head.preds[i]),
            "prediction_name": _name(names, int(head.preds[i])),
            "score": rounded(head.topk_score[i, 0]),
        }
        for i in surest_first
    ]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror}). Choose another folder.") from error


def _write_head(predictions: Predictions, head: HeadPredictions, names: Sequence[str], folder: Path, suffix: str) -> list[Path]:
    written = [_write_csv(folder / f"predictions{suffix}.csv", _prediction_rows(predictions, head, names))]
    if head.gt is None:
        return written
    written.append(_write_csv(folder / f"per_class{suffix}.csv", _class_rows(head, names)))
    path = folder / f"confusion{suffix}.csv"
    if head.gt.ndim == 2:
        return [*written, _write_csv(path, _set_confusion_rows(head, names))]
    if head.classes > LARGEST:
        return [*written, _write_csv(path, _sparse_confusion_rows(head, names))]
    matrix = confusion_matrix(head)
    rows = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    written.append(_write_csv(path, [["true \\ predicted", *names], *rows]))
    figure = path.with_suffix(".png")
    if (line := missing_matplotlib(figure.name)) is not None:
        warnings.warn(line, stacklevel=2)
        return written
    write_bytes(figure, confusion_figure(matrix, names))
    return [*written, figure]


def _class_rows(head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    """A class that no image bears has no accuracy, recall or average precision: its cells are empty."""
    counts = scoring.counts_of(head)
    sets = head.gt is not None and head.gt.ndim == 2
    precisions = scoring.average_precisions(head) if sets else None
    header: list[object] = ["class", "name", "images", "correct", "accuracy", "precision", "recall", "f1"]
    yield [*header, "average_precision"] if sets else header
    for c, name in enumerate(names):
        borne = counts.images[c] > 0
        recall = _percent(counts.recall[c]) if borne else ""
        accuracy = _percent(_agreement(head, c)) if sets else recall
        precision = _percent(counts.precision[c]) if counts.predicted[c] else ""
        f1 = _percent(counts.f1[c]) if borne or counts.predicted[c] else ""
        row = [c, name, counts.images[c], counts.correct[c], accuracy, precision, recall, f1]
        yield row if precisions is None else [*row, _percent(precisions[c]) if borne else ""]


def _agreement(head: HeadPredictions, c: int) -> float:
    """The share of images for which a class is rightly in or out of the set."""
    assert head.gt is not None
    return float((scoring.predicted_sets(head)[:, c] == head.gt[:, c]).mean())


def _prediction_rows(predictions: Predictions, head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    judged = ["label", "prediction", "correct"] if head.gt is not None else ["prediction"]
    depth = head.topk_idx.shape[1]
    yield ["filename", *judged, *(f"{part}{k}" for k in range(1, depth + 1) for part in ("top", "score"))]
    for i, filename in enumerate(predictions.filename):
        label, prediction = answer_of(head, i)
        said = [_joined(label, names), _joined(prediction, names), int(label == prediction)]
        pairs = zip(head.topk_idx[i], head.topk_score[i], strict=True)
        best = [cell for c, score in pairs for cell in (_name(names, c), f"{score:.6f}")]
        yield [filename, *(said if head.gt is not None else said[1:2]), *best]


def _set_confusion_rows(head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    """Two by two for each class, because a set of labels has no single class that it was taken for."""
    counts = scoring.counts_of(head)
    assert head.gt is not None
    yield ["class", "name", "true_positive", "false_positive", "false_negative", "true_negative"]
    for c, name in enumerate(names):
        right = counts.correct[c]
        extra, missed = counts.predicted[c] - right, counts.images[c] - right
        yield [c, name, right, extra, missed, len(head.gt) - right - extra - missed]


def _sparse_confusion_rows(head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    """Only the pairs that occur: C x C cells of many classes would be gigabytes."""
    assert head.gt is not None
    readable = head.preds >= 0
    pairs = np.stack([head.gt[readable], head.preds[readable]], axis=1)
    yield ["true", "predicted", "images"]
    for (true, predicted), images in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
        yield [names[true], names[predicted], images]


def _joined(classes: int | list[int] | None, names: Sequence[str]) -> str:
    if isinstance(classes, list):
        return ";".join(names[c] for c in classes)
    return "" if classes is None else _name(names, classes)


def _name(names: Sequence[str], c: int) -> str:
    return "" if c == UNREADABLE else names[c]


def _names_of(given: Names | None, number: int, predictions: Predictions) -> list[str]:
    classes = predictions.heads[number].classes
    if given is None or len(given) == 0:
        return [str(c) for c in range(classes)]
    one_list = all(isinstance(name, str) for name in given)
    names = given if one_list else given[number] if number < len(given) else []
    if len(names) != classes:
        raise UserError(
            f"has {count(len(names), 'name')}, but head {number} of the net has {classes} classes",
            fix="Give one name for each class (with several heads: one list for each).",
            key="class_names",
        )
    return [str(name) for name in names]


def _percent(part: float) -> str:
    return f"{100 * part:.4f}"


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null, so that every reader can read it."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, content: Any) -> Path:
    return _write_text(path, [json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"])


def _write_csv(path: Path, rows: Rows) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return _write_text(path, [text.getvalue()])


def _write_text(path: Path, parts: Iterable[str]) -> Path:
    def fill(file: BinaryIO) -> None:
        # surrogateescape: file names need not be UTF-8, and must come out as they went in.
        file.writelines(part.encode("utf-8", "surrogateescape") for part in parts)

    write_atomically(path, fill)
    return path
