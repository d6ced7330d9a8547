"""What a network says of an image, and how it is written down: table, json, jsonl, csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
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
        heads = [[guess.__dict__ for guess in head] for head in self.heads]
        return {"file": self.file, "predictions": heads[0] if len(heads) == 1 else heads}


def best_guesses(scores: NDArray[np.float32], topk: int, names: Sequence[str] | None) -> list[Guess]:
    """The ``topk`` classes of ``scores`` (C,), best first; equal ones in the order of the classes."""
    order = np.argsort(-scores, kind="stable")[:topk]
    return [Guess(int(label), names[label] if names else str(label), float(scores[label])) for label in order]


def rendered(answers: Iterable[Answer], kind: Literal["json", "jsonl", "csv"]) -> str:
    """All answers as one text."""
    if kind == "json":
        return json.dumps([answer.as_json() for answer in answers], indent=2, ensure_ascii=False) + "\n"
    if kind == "jsonl":
        return "".join(json.dumps(answer.as_json(), ensure_ascii=False) + "\n" for answer in answers)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "head", "rank", "label", "name", "score", "error"])
    for answer in answers:
        if answer.error is not None:
            writer.writerow([answer.file, "", "", "", "", "", answer.error])
        for head, guesses in enumerate(answer.heads):
            for rank, guess in enumerate(guesses, 1):
                writer.writerow([answer.file, head, rank, guess.label, guess.name, f"{guess.score:.6f}", ""])
    return text.getvalue()
