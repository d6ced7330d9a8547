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


class Head(Entry):
    """The outputs of one classifier."""

    name: str
    """Its name, as in category_param.json."""
    start: AtLeast0
    """Its first number in the output."""
    end: AtLeast0
    """Its last number in the output (inclusive, like feature_end of category_param.json)."""
    type: Literal["multiclass", "multilabel"]
    """One class an image, or any number of them."""
    activation: Literal["softmax", "sigmoid"]
    """What makes probabilities of its logits."""
    labels: list[str]
    """Names of the classes, one a number."""
    thresholds: list[float] | None = None
    """multilabel: above which probability each class counts as present."""
    topk: AtLeast1
    """How many classes to show where nothing else is asked for."""

    @model_validator(mode="after")
    def _one_label_a_number(self) -> Head:
        numbers = self.end - self.start + 1
        for what, values in (("labels", self.labels), ("thresholds", self.thresholds)):
            if values is not None and len(values) != numbers:
                raise ValueError(f"head {self.name!r} has {len(values)} {what} for {numbers} outputs")
        return self


@dataclass(frozen=True)
class ClassPrediction:
    """One class with its score, a probability."""

    label: int
    name: str
    score: float
    present: bool | None = None  # of a set of labels: whether it belongs to the image; None where one class is predicted


@dataclass(frozen=True)
class Classes(Result):
    """The best classes of each head, best first."""

    heads: Sequence[Sequence[ClassPrediction]]

    def as_json(self) -> Json:
        """The predictions of the head, or a list of such for several heads."""
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
        """One row per head: the best class, or all labels of a set that are present, then the next best."""
        for head in self.heads:
            shown = _shown(head)
            rest = ", ".join(f"{each.name} {each.score:.3f}" for each in head if each not in shown)
            names = "\n".join(each.name for each in shown) or "no label"
            yield names, "\n".join(f"{each.score:.3f}" for each in shown), rest

    def draw(self, image: Image.Image) -> Image.Image:
        """The image with a line below it for each head."""
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
    """The best class, or the labels of a set that are present."""
    return [each for each in head if each.present] if head[0].present is not None else list(head[:1])


def _line(head: Sequence[ClassPrediction]) -> str:
    """The names shown, by number where no font here has a name's letters."""
    shown = _shown(head)
    if (line := missing_font(each.name for each in shown)) is not None:
        warnings.warn(line, stacklevel=2)
    named = [(each.name if is_drawable(each.name) else f"class {each.label}", each.score) for each in shown]
    return ", ".join(f"{name} {score:.2f}" for name, score in named) or "no label"


class ClassesAnswer(Answer):
    """Classes of the whole image: ``output`` (N, numbers) holds the numbers of all heads side by side."""

    kind: Literal["classes"] = "classes"
    output: str = "scores"
    """The output that holds them."""
    activated: bool
    """Whether the numbers are probabilities; logits otherwise."""
    heads: Annotated[list[Head], Field(min_length=1)]
    """The classifiers, in order."""

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
        """Probabilities (N, C) of each head."""
        numbers = outputs[self.output]
        return [activate(numbers[:, h.start : h.end + 1], "none" if self.activated else h.activation) for h in self.heads]

    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        scores = self.probabilities(outputs)
        rows = range(len(outputs[self.output]))
        return [Classes([_best_of(own[row], head, topk) for own, head in zip(scores, self.heads, strict=True)]) for row in rows]

    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """The class of each head; nothing for sets of labels, which have no best."""
        numbers = outputs[self.output]
        single = [head for head in self.heads if head.type == "multiclass"]
        found = [numbers[:, head.start : head.end + 1].argmax(axis=1) for head in single]
        return np.stack(found, axis=1) if found else np.zeros((len(numbers), 0), dtype=np.int64)


def _best_of(scores: Floats, head: Head, topk: int | None) -> list[ClassPrediction]:
    """The ``topk`` best classes of ``scores`` (C,), equal ones in the order of the classes.

    With ``topk`` None there are as many as the head says, and all labels of a set that are present.
    """
    present = None if head.thresholds is None else scores > np.array(head.thresholds, dtype=np.float32)
    number = topk or max(head.topk, 0 if present is None else int(present.sum()))
    return [
        ClassPrediction(int(label), head.labels[label], float(scores[label]), None if present is None else bool(present[label]))
        for label in np.argsort(-scores, kind="stable")[:number]
    ]
