"""Files of an evaluation: metrics, predictions, a line a class, confusions, wrong images and ``results.txt``."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from up.csv_text import write_rows
from up.distributed.group import rank
from up.errors import StorageError
from up.figures import missing_matplotlib
from up.files import make_folder, write_atomically, write_bytes
from up.intervals import wilson
from up.json_text import json_list, json_text
from up.tasks.cls.evaluate import scoring
from up.tasks.cls.evaluate.confusion import LARGEST, confusion_figure, confusion_matrix
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.predictions import UNREADABLE, HeadPredictions, Predictions, Recorder, combine
from up.tasks.cls.model.heads import Names, labels_of
from up.tasks.report import Outcomes
from up.types import Kwargs, Record

STREAM = "results.txt.rank{rank}"
_TAIL = 1 << 16  # bytes of a file read at a time, from its end


def write_reports(
    evaluator: ImageNetEvaluator, folder: Path, class_names: Names | None = None, *, save_result: bool = False
) -> list[Path]:
    """Write the files of an evaluation into ``folder``, and return them.

    Always ``metrics.json`` and ``predictions.csv``; with labels ``per_class.csv``, ``confusion.csv`` and, up to 1000
    classes and with matplotlib, ``confusion.png``; with ``save_result`` ``results.txt``, a JSON object a line; with the
    evaluator's ``bad_case_analyse`` the wrong images. Several heads have ``_head0`` in the names. Percent. Each file
    appears whole or not at all.
    ``class_names``: one list, or one a head; those of the evaluator, then the numbers, when left out.
    Raises ``UserError`` when there are not as many names as classes, ``StorageError`` when a file cannot be written.
    """
    predictions = evaluator.predictions
    heads = predictions.heads
    names = labels_of(class_names or evaluator.class_names, [head.classes for head in heads]) if heads else []
    make_folder(folder)
    written = [_write_lines(folder / "metrics.json", [json_text(evaluator.compute(), indent=2), "\n"])]
    for number, head in enumerate(heads):
        suffix = f"_head{number}" if len(heads) > 1 else ""
        written += _write_head(predictions, head, names[number], folder, suffix)
        if evaluator.bad_case_analyse and head.gt is not None:
            path = folder / (evaluator.analysis_json or "bad_cases.json")
            make_folder(path.parent)
            bad_cases = json_list(_bad_cases(predictions, head, names[number]))
            written.append(_write_lines(path.with_stem(path.stem + suffix), bad_cases))
    if save_result:
        written.append(_write_lines(folder / "results.txt", result_lines(predictions)))
    return written


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


def _bad_cases(predictions: Predictions, head: HeadPredictions, names: Sequence[str]) -> Iterator[Record]:
    """Yield the images that a head got wrong, the most confident first; with sets of labels the missed and the added ones."""
    labels = head.labels
    if labels.ndim == 2:
        sets = head.sets
        for i in np.flatnonzero(~head.correct).tolist():
            yield {
                "filename": predictions.filename[i],
                "missed": [names[c] for c in np.flatnonzero(labels[i] & ~sets[i]).tolist()],
                "added": [names[c] for c in np.flatnonzero(sets[i] & ~labels[i]).tolist()],
            }
        return
    wrong = np.flatnonzero(head.preds != labels)
    for i in wrong[np.argsort(-head.topk_score[wrong, 0], kind="stable")].tolist():
        yield {
            "filename": predictions.filename[i],
            "label": int(labels[i]),
            "label_name": names[int(labels[i])],
            "prediction": int(head.preds[i]),
            "prediction_name": _name(names, int(head.preds[i])),
            "score": _rounded(head.topk_score[i, 0]),
        }


def _class_rows(head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    """A class without images has no accuracy, recall or average precision: its cells are empty."""
    counts = scoring.counts_of(head)
    sets = (head.sets == head.labels) & (head.preds != UNREADABLE)[:, None] if head.labels.ndim == 2 else None
    precisions = None if sets is None else scoring.average_precisions(head)
    header: list[object] = ["class", "name", "images", "correct", "accuracy", "precision", "recall", "f1"]
    yield [*header, *(() if sets is None else ("average_precision",)), "accuracy_low", "accuracy_high"]
    for c, name in enumerate(names):
        images, predicted = counts.images[c], counts.predicted[c]
        recall = _percent(counts.recall[c]) if images else ""
        accuracy = recall if sets is None else _percent(float(sets[:, c].mean()))
        precision = _percent(counts.precision[c]) if predicted else ""
        f1 = _percent(counts.f1[c]) if images or predicted else ""
        row = [c, name, images, counts.correct[c], accuracy, precision, recall, f1]
        area = [] if precisions is None else [_percent(precisions[c]) if images else ""]
        correct, of = (counts.correct[c], images) if sets is None else (sets[:, c].sum(), len(sets))
        yield [*row, *area, *((_percent(limit) for limit in wilson(int(correct), int(of))) if of else ("", ""))]


def _prediction_rows(predictions: Predictions, head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    columns = ["prediction"] if head.gt is None else ["label", "prediction", "correct"]
    depth = head.topk_idx.shape[1]
    correct = None if head.gt is None else head.correct
    yield ["filename", *columns, *(f"{part}{k}" for k in range(1, depth + 1) for part in ("top", "score"))]
    for i, filename in enumerate(predictions.filename):
        label, prediction = _label_and_prediction(head, i)
        cells = [_joined(prediction, names)]
        if correct is not None:
            cells = [_joined(label, names), *cells, str(int(correct[i]))]
        pairs = zip(head.topk_idx[i], head.topk_score[i], strict=True)
        best = [cell for c, score in pairs for cell in (_name(names, c), f"{score:.6f}")]
        yield [filename, *cells, *best]


def outcomes_of(evaluator: ImageNetEvaluator, class_names: Names | None) -> list[Outcomes]:
    """Return the rows of ``predictions.csv`` of each head; none without labels."""
    predictions = evaluator.predictions
    heads = predictions.heads
    if not heads or any(head.gt is None for head in heads):
        return []
    names = labels_of(class_names or evaluator.class_names, [head.classes for head in heads])
    return [_outcomes_of(predictions, number, own) for number, own in enumerate(names)]


def _outcomes_of(predictions: Predictions, number: int, names: Sequence[str]) -> Outcomes:
    head = predictions.heads[number]
    pairs = [_label_and_prediction(head, i) for i in range(len(predictions))]
    return Outcomes(
        predictions.filename,
        [_joined(label, names) for label, _ in pairs],
        [_joined(prediction, names) for _, prediction in pairs],
        head.correct.tolist(),
        predictions.index.tolist(),
        number if len(predictions.heads) > 1 else None,
    )


def _set_confusion_rows(head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    """Two by two for each class, because a set of labels has no single class that it was confused with.

    Scores that are not finite are right for no class, so that such an image is no true negative.
    """
    counts, readable = scoring.counts_of(head), head.preds != UNREADABLE
    negatives = (~(head.labels | head.sets)[readable]).sum(axis=0)
    yield ["class", "name", "true_positive", "false_positive", "false_negative", "true_negative"]
    for c, name in enumerate(names):
        correct = counts.correct[c]
        added, missed = counts.predicted[c] - correct, counts.images[c] - correct
        yield [c, name, correct, added, missed, negatives[c]]


def _sparse_confusion_rows(head: HeadPredictions, names: Sequence[str]) -> Iterator[list[object]]:
    """Only the pairs that occur: C x C cells of many classes would be gigabytes."""
    readable = head.preds >= 0
    pairs = np.stack([head.labels[readable], head.preds[readable]], axis=1)
    yield ["true", "predicted", "images"]
    for (true, predicted), images in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
        yield [names[true], names[predicted], images]


def result_lines(predictions: Predictions) -> Iterator[str]:
    """Yield a JSON line an image; with several heads every value but the file name is a list, one entry a head."""
    for i, filename in enumerate(predictions.filename):
        each = [_result(head, i) for head in predictions.heads]
        line = each[0] if len(each) == 1 else {key: [result[key] for result in each] for key in each[0]}
        yield json_text({**line, "filename": filename}) + "\n"


class ResultStream:
    """Appends the lines of each batch to this rank's own file, so that a killed inference can continue from there.

    Used as ``stream(outputs, batch)``. With ``continues`` the lines of an earlier inference stay, except an incomplete last
    line; otherwise the file is overwritten. Raises ``StorageError`` when the file cannot be written.
    """

    def __init__(
        self, folder: Path, *, depth: int, keep_scores: bool = False, multilabel: bool = False, continues: bool = False
    ) -> None:
        self.path = folder / STREAM.format(rank=rank())
        self._fresh = partial(Recorder, depth=depth, keep_scores=keep_scores, multilabel=multilabel)
        self._continues, self._is_begun = continues, False

    def __call__(self, outputs: Kwargs, batch: Kwargs) -> None:
        recorder = self._fresh()
        recorder.add(outputs["scores"], batch)
        try:
            if not self._is_begun and self._continues:
                _end_last_line(self.path)
            mode = "a" if self._is_begun or self._continues else "w"
            with self.path.open(mode, encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(result_lines(combine([recorder.state()])))
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}).") from error
        self._is_begun = True


def _end_last_line(path: Path) -> None:
    """Remove an incomplete last line, to which the next one would be joined; end one that only lacks its line feed."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        last, at = b"", file.seek(0, os.SEEK_END)
        while at and b"\n" not in last:
            at = max(0, at - _TAIL)
            file.seek(at)
            last = file.read()
        last = last.rpartition(b"\n")[2]
        try:
            json.loads(last or b"{}")
        except ValueError:
            file.seek(-len(last), os.SEEK_END)
            file.truncate()
        else:
            file.write(b"\n" if last else b"")


def _result(head: HeadPredictions, i: int) -> Record:
    label, prediction = _label_and_prediction(head, i)
    result = {
        "prediction": prediction,
        "label": label,
        "topk_idx": head.topk_idx[i].tolist(),
        "topk_score": [_rounded(score) for score in head.topk_score[i]],
    }
    return result if head.scores is None else {**result, "score": [_rounded(score) for score in head.scores[i]]}


def _label_and_prediction(head: HeadPredictions, i: int) -> tuple[int | list[int] | None, int | list[int]]:
    """Two classes, or two lists of classes; the label is None when unknown."""
    if head.gt is not None and head.gt.ndim == 2:
        return np.flatnonzero(head.gt[i]).tolist(), np.flatnonzero(head.sets[i]).tolist()
    return None if head.gt is None else int(head.gt[i]), int(head.preds[i])


def _joined(classes: int | list[int] | None, names: Sequence[str]) -> str:
    if isinstance(classes, list):
        return ";".join(names[c] for c in classes)
    return "" if classes is None else _name(names, classes)


def _name(names: Sequence[str], c: int) -> str:
    return "" if c == UNREADABLE else names[c]


def _percent(part: float) -> str:
    return f"{100 * part:.4f}"


def _rounded(score: float) -> float:
    """Round to six digits: more than float32 has, and half of the bytes."""
    return round(float(score), 6)


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    return _write(path, lambda file: write_rows(file, rows))


def _write_lines(path: Path, lines: Iterable[str]) -> Path:
    return _write(path, lambda file: file.writelines(lines))


def _write(path: Path, fill: Callable[[TextIO], object]) -> Path:
    def encode(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")  # file names need not be UTF-8
        fill(text)
        text.detach()  # flushes, and leaves the file open

    write_atomically(path, encode)
    return path
