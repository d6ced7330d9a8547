"""Predictions of images, written as json, jsonl, csv, masks, or drawn on the images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from up.bundle.answers import Result
from up.bundle.answers.classes import Classes, ClassPrediction
from up.bundle.answers.pixels import Mask
from up.csv_text import write_rows
from up.errors import StorageError
from up.json_text import json_list, json_text
from up.text import unused_name
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
            write_rows(text, ([each.file, *row, each.error or ""] for row in rows))
            yield text.getvalue()
    elif kind == "jsonl":
        for each in predictions:
            yield json_text(each.as_json()) + "\n"
    else:
        yield from json_list(each.as_json() for each in predictions)


def drawn(predictions: Iterable[Prediction], folder: Path, opened: Callable[[str], Image.Image]) -> Iterator[Prediction]:
    """Draw each prediction on its image, which ``opened`` reads, write it into ``folder``, and pass it on."""
    taken: set[str] = set()
    for each in predictions:
        if each.result is not None:
            _write_png(each.result.draw(opened(each.file)), folder, each.file, taken)
        yield each


def with_masks(predictions: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """Write each mask into ``folder``, and pass the prediction on with the name of the file."""
    taken: set[str] = set()
    for each in predictions:
        if isinstance(each.result, Mask):
            each = replace(each, mask=str(_write_png(each.result.as_image(), folder, each.file, taken)))
        yield each


def _write_png(image: Image.Image, folder: Path, file: str, taken: set[str]) -> Path:
    """Write a PNG with the name of ``file``, numbered if it is ``taken`` by one of another folder, and return its path.

    Raises ``StorageError``.
    """
    name = unused_name(Path(file).stem, taken)
    taken.add(name)
    path = folder / f"{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror or error})", file=path) from error
    return path
