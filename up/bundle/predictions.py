"""What a network says of an image, and how it is written down: table, json, jsonl, csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Format = Literal["table", "json", "jsonl", "csv"]


@dataclass(frozen=True)
class Guess:
    """One class of the best few."""

    label: int
    name: str
    score: float
    present: bool | None = None  # of a set of labels: whether it belongs to the image; None where one class is told


@dataclass(frozen=True)
class Answer:
    """The best classes of an image, for each head; or why there are none."""

    file: str
    heads: Sequence[Sequence[Guess]] = ()
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values: ``predictions`` of the head, or a list of such for several heads."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        heads = [[_plain(guess) for guess in head] for head in self.heads]
        return {"file": self.file, "predictions": heads[0] if len(heads) == 1 else heads}


def _plain(guess: Guess) -> dict[str, Any]:
    return {key: value for key, value in guess.__dict__.items() if value is not None}


def best_guesses(
    scores: NDArray[np.float32],
    names: Sequence[str] | None,
    *,
    topk: int | None,
    default: int,
    present: NDArray[np.bool_] | None = None,
) -> list[Guess]:
    """The ``topk`` classes of ``scores`` (C,), best first; equal ones in the order of the classes.

    ``present`` (C,) says which labels of a set belong to the image. With ``topk`` None there are ``default`` classes, and
    all that are present however many these are.
    """
    shown = topk or max(default, 0 if present is None else int(present.sum()))
    order = np.argsort(-scores, kind="stable")[:shown]
    return [
        Guess(
            int(label),
            names[label] if names else str(label),
            float(scores[label]),
            None if present is None else bool(present[label]),
        )
        for label in order
    ]


def rendered(answers: Iterable[Answer], kind: Literal["json", "jsonl", "csv"]) -> Iterator[str]:
    """The text of the answers, piece by piece as they come."""
    if kind == "json":
        return _as_json(answers)
    if kind == "jsonl":
        return (json.dumps(answer.as_json(), ensure_ascii=False) + "\n" for answer in answers)
    return _as_csv(answers)


def _as_json(answers: Iterable[Answer]) -> Iterator[str]:
    before = "[\n  "
    for answer in answers:
        yield before + json.dumps(answer.as_json(), indent=2, ensure_ascii=False).replace("\n", "\n  ")
        before = ",\n  "
    yield "[]\n" if before.startswith("[") else "\n]\n"


def _as_csv(answers: Iterable[Answer]) -> Iterator[str]:
    yield "file,head,rank,label,name,score,present,error\n"
    for answer in answers:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if answer.error is not None:
            writer.writerow([answer.file, "", "", "", "", "", "", answer.error])
        for head, guesses in enumerate(answer.heads):
            for rank, guess in enumerate(guesses, 1):
                present = "" if guess.present is None else int(guess.present)
                writer.writerow([answer.file, head, rank, guess.label, guess.name, f"{guess.score:.6f}", present, ""])
        yield text.getvalue()
