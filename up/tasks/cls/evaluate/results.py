"""``results.txt``: what the net said of each image, a JSON object a line, in one go or as the images come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from up.distributed.group import rank
from up.errors import StorageError
from up.tasks.cls.evaluate import scoring
from up.tasks.cls.evaluate.predictions import HeadPredictions, Predictions, Recorder, combine

STREAM = "results.txt.rank{rank}"


def result_lines(predictions: Predictions) -> Iterator[str]:
    """A line an image; with several heads every value but the file name is a list, one entry a head."""
    for i, filename in enumerate(predictions.filename):
        each = [_result(head, i) for head in predictions.heads]
        line = each[0] if len(each) == 1 else {key: [result[key] for result in each] for key in each[0]}
        yield json.dumps({**line, "filename": filename}, ensure_ascii=False) + "\n"


class ResultStream:
    """Appends the lines of each batch to this rank's own file, so that an inference that is killed can continue from there.

    Used as ``stream(outputs, batch)``. Raises ``StorageError`` when the file cannot be written.
    """

    def __init__(self, folder: Path, *, depth: int, keep_scores: bool = False, multilabel: bool = False) -> None:
        self.path = folder / STREAM.format(rank=rank())
        self._fresh = partial(Recorder, depth=depth, keep_scores=keep_scores, multilabel=multilabel)

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        recorder = self._fresh()
        recorder.add(outputs["scores"], batch)
        try:
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(result_lines(combine([recorder.state()])))
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error.strerror}).") from error


def _result(head: HeadPredictions, i: int) -> dict[str, Any]:
    label, prediction = answer_of(head, i)
    result = {
        "prediction": prediction,
        "label": label,
        "topk_idx": head.topk_idx[i].tolist(),
        "topk_score": [rounded(score) for score in head.topk_score[i]],
    }
    return result if head.scores is None else {**result, "score": [rounded(score) for score in head.scores[i]]}


def answer_of(head: HeadPredictions, i: int) -> tuple[Any, Any]:
    """Label and prediction of an image: two classes, or two lists of classes; the label is None when unknown."""
    if head.gt is not None and head.gt.ndim == 2:
        return np.flatnonzero(head.gt[i]).tolist(), np.flatnonzero(scoring.predicted_sets(head)[i]).tolist()
    return None if head.gt is None else int(head.gt[i]), int(head.preds[i])


def rounded(score: float) -> float:
    """Six digits are more than float32 knows, and half of the bytes."""
    return round(float(score), 6)
