"""Predictions of images, and how they are written: json, jsonl, csv, drawn on the images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from up.bundle.answers import Result
from up.bundle.answers.classes import Classes, ClassPrediction
from up.bundle.answers.pixels import Mask
from up.errors import StorageError
from up.types import Json

Format = Literal["json", "jsonl", "csv"]


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for an image, or why it predicts nothing."""

    file: str
    result: Result | None = None
    error: str | None = None
    mask: str | None = None  # the file that its mask was written to

    @property
    def heads(self) -> Sequence[Sequence[ClassPrediction]]:
        """The best classes of each head; none for other answers than classes."""
        return self.result.heads if isinstance(self.result, Classes) else ()

    def as_json(self) -> dict[str, Json]:
        """Plain values: ``file`` with ``predictions`` or ``error``."""
        if self.result is None:
            return {"file": self.file, "error": self.error}
        written = {} if self.mask is None else {"mask": self.mask}
        return {"file": self.file, "predictions": self.result.as_json(), **written}


def rendered(predictions: Iterable[Prediction], kind: Format, columns: Sequence[str]) -> Iterator[str]:
    """The text of the predictions, piece by piece; ``columns`` are the answer's."""
    if kind == "json":
        return _as_json(predictions)
    if kind == "jsonl":
        return (json.dumps(each.as_json(), ensure_ascii=False) + "\n" for each in predictions)
    return _as_csv(predictions, columns)


def _as_json(predictions: Iterable[Prediction]) -> Iterator[str]:
    before = "[\n  "
    for each in predictions:
        yield before + json.dumps(each.as_json(), indent=2, ensure_ascii=False).replace("\n", "\n  ")
        before = ",\n  "
    yield "[]\n" if before.startswith("[") else "\n]\n"


def _as_csv(predictions: Iterable[Prediction], columns: Sequence[str]) -> Iterator[str]:
    yield ",".join(["file", *columns, "error"]) + "\n"
    for each in predictions:
        text = io.StringIO()
        rows = [[""] * len(columns)] if each.result is None else each.result.csv_rows()
        csv.writer(text, lineterminator="\n").writerows([each.file, *row, each.error or ""] for row in rows)
        yield text.getvalue()


def drawn(predictions: Iterable[Prediction], folder: Path, opened: Callable[[str], Image.Image]) -> Iterator[Prediction]:
    """The predictions; as each goes by, it is drawn on its image, which ``opened`` returns, and written into ``folder``."""
    names = Names()
    for each in predictions:
        if each.result is not None:
            write_png(each.result.draw(opened(each.file)), folder, names.of(each.file))
        yield each


def with_masks(predictions: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """The predictions with the name of the file in ``folder`` that each mask is written to as it goes by."""
    names = Names()
    for each in predictions:
        if isinstance(each.result, Mask):
            each = replace(each, mask=str(write_png(each.result.as_image(), folder, names.of(each.file))))
        yield each


class Names:
    """Names of the files written for images; equal names of images in different folders get a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, file: str) -> str:
        """The name for an image's file, without its ending."""
        stem = name = Path(file).stem
        number = 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        return name


def write_png(image: Image.Image, folder: Path, name: str) -> Path:
    """Write ``folder/name.png``, and return it. Raises ``StorageError`` where that fails."""
    path = folder / f"{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror or error})", file=path) from error
    return path
