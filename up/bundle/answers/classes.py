"""Classes of the whole image: the best few of each head, or the labels of a set that are present."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field, model_validator

from up.bundle.answers.answer import Answer, Floats, Outputs, OutputSpec, Result, activate
from up.bundle.operations import AtLeast1, Entry
from up.figures import font_for, is_drawable, missing_font
from up.types import Json

AtLeast0 = Annotated[int, Field(ge=0)]


class HeadSpec(Entry):
    """Outputs of one classifier."""

    name: str
    """Name, as in category_param.json."""
    start: AtLeast0
    """Index of its first number in the output."""
    end: AtLeast0
    """Index of its last number in the output (inclusive, like feature_end of category_param.json)."""
    type: Literal["multiclass", "multilabel"]
    """multiclass: one class per image; multilabel: any number of them."""
    activation: Literal["softmax", "sigmoid"]
    """Activation that makes probabilities of its logits."""
    labels: list[str]
    """Names of the classes, one per number."""
    thresholds: list[float] | None = None
    """multilabel: probability above which each class counts as present."""
    topk: AtLeast1
    """Default number of classes to show."""

    @model_validator(mode="after")
    def _one_label_a_number(self) -> HeadSpec:
        numbers = self.end - self.start + 1
        for what, values in (("labels", self.labels), ("thresholds", self.thresholds)):
            if values is not None and len(values) != numbers:
                raise ValueError(f"head {self.name!r} has {len(values)} {what} for {numbers} outputs")
        return self


@dataclass(frozen=True)
class ClassPrediction:
    """A class with its score, a probability."""

    label: int
    name: str
    score: float
    present: bool | None = None  # multilabel: whether it is above the threshold; multiclass: None


@dataclass(frozen=True)
class Classes(Result):
    """Best classes of each head, best first."""

    heads: Sequence[Sequence[ClassPrediction]]

    def as_json(self) -> Json:
        """Return the predictions of the head, or a list of them for several heads."""
        heads = [
            [{key: value for key, value in each.__dict__.items() if value is not None} for each in head] for head in self.heads
        ]
        return heads[0] if len(heads) == 1 else heads

    def csv_rows(self) -> Iterator[Sequence[object]]:
        for head, predictions in enumerate(self.heads):
            for rank, each in enumerate(predictions, 1):
                present = "" if each.present is None else int(each.present)
                yield head, rank, each.label, each.name, f"{each.score:.6f}", present

    def table_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield a row per head: the best class, or all labels that are present, then the next best."""
        for head in self.heads:
            shown = _shown(head)
            rest = ", ".join(f"{each.name} {each.score:.3f}" for each in head if each not in shown)
            names = "\n".join(each.name for each in shown) or "no label"
            yield names, "\n".join(f"{each.score:.3f}" for each in shown), rest

    def draw(self, image: Image.Image) -> Image.Image:
        """Add a line below the image for each head."""
        size = max(12, min(image.size) // 16)
        lines = [(line, font_for(line, size)) for line in map(_line, self.heads)]
        width = max(image.width, 120, *(math.ceil(font.getlength(line)) + 6 for line, font in lines))
        band = Image.new("RGB", (width, image.height + (size + 6) * len(lines)), "black")
        band.paste(image, (0, 0))
        pen = ImageDraw.Draw(band)
        for row, (line, font) in enumerate(lines):
            pen.text((3, image.height + 2 + row * (size + 6)), line, fill="white", font=font)
        return band


def _shown(head: Sequence[ClassPrediction]) -> list[ClassPrediction]:
    """Return the best class, or for several labels those that are present."""
    return [each for each in head if each.present] if head[0].present is not None else list(head[:1])


def _line(head: Sequence[ClassPrediction]) -> str:
    """Return the names shown, by number if no font here has a name's letters."""
    shown = _shown(head)
    if (line := missing_font(each.name for each in shown)) is not None:
        warnings.warn(line, stacklevel=2)
    named = [(each.name if is_drawable(each.name) else f"class {each.label}", each.score) for each in shown]
    return ", ".join(f"{name} {score:.2f}" for name, score in named) or "no label"


class ClassesAnswer(Answer):
    """Classes of the whole image: ``output`` (N, numbers) holds the numbers of all heads side by side."""

    kind: Literal["classes"] = "classes"
    output: str = "scores"
    """Name of the output."""
    activated: bool
    """Whether the numbers are probabilities rather than logits."""
    heads: Annotated[list[HeadSpec], Field(min_length=1)]
    """Classifiers, in order."""

    columns: ClassVar = ("head", "rank", "label", "name", "score", "present")
    headings: ClassVar = ("class", "score", "next")

    def misfit(self, outputs: Sequence[OutputSpec]) -> str | None:
        at = 0
        for head in self.heads:
            if head.start != at or head.end < head.start:
                return f"head {head.name!r} covers outputs {head.start} to {head.end}: expected it to start at {at}"
            at = head.end + 1
        found = [(output.name, output.axes) for output in outputs]
        return None if found == [(self.output, ["N", at])] else f"the heads cover {at} outputs, the graph has {found[0][1][-1]}"

    def label_lists(self) -> list[list[str]]:
        return [head.labels for head in self.heads]

    def probabilities(self, outputs: Outputs) -> list[Floats]:
        """Return probabilities (N, C) of each head."""
        numbers = outputs[self.output]
        return [activate(numbers[:, h.start : h.end + 1], "none" if self.activated else h.activation) for h in self.heads]

    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        scores = self.probabilities(outputs)
        rows = range(len(outputs[self.output]))
        return [Classes([_best_of(own[row], head, topk) for own, head in zip(scores, self.heads, strict=True)]) for row in rows]

    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """Return the class of each multiclass head; several labels have no best one."""
        numbers = outputs[self.output]
        single = [head for head in self.heads if head.type == "multiclass"]
        found = [numbers[:, head.start : head.end + 1].argmax(axis=1) for head in single]
        return np.stack(found, axis=1) if found else np.zeros((len(numbers), 0), dtype=np.int64)


def _best_of(scores: Floats, head: HeadSpec, topk: int | None) -> list[ClassPrediction]:
    """Return the ``topk`` best classes of ``scores`` (C,), equal ones in the order of the classes.

    With ``topk`` None: the default number of the head, and all labels that are present.
    """
    present = None if head.thresholds is None else scores > np.array(head.thresholds, dtype=np.float32)
    number = topk or max(head.topk, 0 if present is None else int(present.sum()))
    return [
        ClassPrediction(int(label), head.labels[label], float(scores[label]), None if present is None else bool(present[label]))
        for label in np.argsort(-scores, kind="stable")[:number]
    ]
