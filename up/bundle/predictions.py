"""Predictions of images, written as json, jsonl, csv, masks, or drawn on the images."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Literal

from PIL import Image

from up.bundle.answers import Result
from up.bundle.answers.classes import Classes, ClassPrediction
from up.bundle.answers.pixels import Mask
from up.errors import StorageError
from up.json_text import json_text
from up.types import Json

Format = Literal["json", "jsonl", "csv"]


@dataclass(frozen=True)
class Prediction:
    """Result of a model for an image, or the reason why there is none."""

    file: str
    result: Result | None = None
    error: str | None = None
    mask: str | None = None  # file of its mask

    @property
    def heads(self) -> Sequence[Sequence[ClassPrediction]]:
        """Best classes of each head; empty for other answers than classes."""
        return self.result.heads if isinstance(self.result, Classes) else ()

    @property
    def name(self) -> str:
        """Name of the best class of the first head. Raises ``IndexError`` for other answers than classes."""
        return self.heads[0][0].name

    @property
    def score(self) -> float:
        """Probability of the best class of the first head. Raises ``IndexError`` for other answers than classes."""
        return self.heads[0][0].score

    def as_json(self) -> dict[str, Json]:
        """Return plain values: ``file`` with ``predictions`` or ``error``."""
        if self.result is None:
            return {"file": self.file, "error": self.error}
        written = {} if self.mask is None else {"mask": self.mask}
        return {"file": self.file, "predictions": self.result.as_json(), **written}


def rendered(predictions: Iterable[Prediction], kind: Format, columns: Sequence[str]) -> Iterator[str]:
    """Yield the text of the predictions, piece by piece; ``columns`` are the answer's."""
    if kind == "csv":
        yield ",".join(["file", *columns, "error"]) + "\n"
        for each in predictions:
            text = io.StringIO()
            rows = [[""] * len(columns)] if each.result is None else each.result.csv_rows()
            csv.writer(text, lineterminator="\n").writerows([each.file, *row, each.error or ""] for row in rows)
            yield text.getvalue()
    elif kind == "jsonl":
        for each in predictions:
            yield json_text(each.as_json()) + "\n"
    else:
        before = "[\n  "
        for each in predictions:
            yield before + json_text(each.as_json(), indent=2).replace("\n", "\n  ")
            before = ",\n  "
        yield "[]\n" if before.startswith("[") else "\n]\n"


def drawn(predictions: Iterable[Prediction], folder: Path, opened: Callable[[str], Image.Image]) -> Iterator[Prediction]:
    """Draw each prediction on its image, which ``opened`` reads, write it into ``folder``, and pass it on."""
    names = _Names()
    for each in predictions:
        if each.result is not None:
            _write_png(each.result.draw(opened(each.file)), folder, names.of(each.file))
        yield each


def with_masks(predictions: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """Write each mask into ``folder``, and pass the prediction on with the name of the file."""
    names = _Names()
    for each in predictions:
        if isinstance(each.result, Mask):
            each = replace(each, mask=str(_write_png(each.result.as_image(), folder, names.of(each.file))))
        yield each


class _Names:
    """Names of the files written for images; equal names of images in different folders get a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, file: str) -> str:
        stem = Path(file).stem
        numbered = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(name for name in numbered if name not in self._taken)
        self._taken.add(name)
        return name


def _write_png(image: Image.Image, folder: Path, name: str) -> Path:
    """Write ``folder/name.png`` and return its path. Raises ``StorageError``."""
    path = folder / f"{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror or error})", file=path) from error
    return path
