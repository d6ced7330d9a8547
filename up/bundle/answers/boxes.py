"""Boxes with a label and a score each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from up.bundle.answers.answer import Activation, Answer, Floats, Outputs, OutputSpec, Result, activate, axes_problem
from up.bundle.operations import AtLeast1, Placement
from up.figures import font_for
from up.types import Json

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class BoxPrediction:
    """A box (left, top, right, bottom) in pixels, with its class and score."""

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Boxes(Result):
    """Boxes of an image, best first."""

    boxes: Sequence[BoxPrediction]

    def on_image(self, placement: Placement) -> Boxes:
        mapped = [replace(each, box=placement.on_image(each.box)) for each in self.boxes]
        return Boxes(
            [each for each in mapped if each.box[0] < each.box[2] and each.box[1] < each.box[3]]
        )  # some are in the padding

    def as_json(self) -> Json:
        return [{**each.__dict__, "box": list(each.box)} for each in self.boxes]

    def csv_rows(self) -> Iterator[Sequence[object]]:
        for rank, each in enumerate(self.boxes, 1):
            yield rank, each.label, each.name, f"{each.score:.6f}", *(f"{side:.2f}" for side in each.box)

    def table_rows(self) -> Iterator[tuple[str, str, str]]:
        for each in self.boxes:
            yield each.name, f"{each.score:.3f}", ", ".join(f"{side:.1f}" for side in each.box)
        if not self.boxes:
            yield "no box", "", ""

    def draw(self, image: Image.Image) -> Image.Image:
        """Draw the boxes, each with its name and score."""
        drawn, size = image.copy(), max(10, min(image.size) // 24)
        pen = ImageDraw.Draw(drawn)
        for each in reversed(self.boxes):
            line = f"{each.name} {each.score:.2f}"
            pen.rectangle(each.box, outline="red", width=max(1, size // 8))
            pen.text((each.box[0] + 2, each.box[1] + 1), line, fill="red", font=font_for(line, size))
        return drawn


class BoxesAnswer(Answer):
    """Boxes: output ``boxes`` (N, Q, 4) left, top, right, bottom in pixels of the input, and ``scores`` (N, Q, classes)."""

    kind: Literal["boxes"] = "boxes"
    boxes: str
    """Name of the output with the corners."""
    scores: str
    """Name of the output with a number for each box and class."""
    labels: Annotated[list[str], Field(min_length=1)]
    """Names of the classes."""
    activation: Activation = "none"
    """Activation that makes probabilities of the scores; ``none``: they are probabilities."""
    nms: Share | None
    """Limit of the intersection over union of two boxes of a class; above it only the better one is kept. null: no limit."""
    min_score: Share = 0.05
    """Lowest score of a box."""
    max_boxes: AtLeast1 = 100
    """Largest number of boxes of an image."""

    columns: ClassVar = ("rank", "label", "name", "score", "left", "top", "right", "bottom")
    headings: ClassVar = ("class", "score", "box")
    is_spatial: ClassVar = True

    def misfit(self, outputs: Sequence[OutputSpec]) -> str | None:
        return axes_problem(outputs, {self.boxes: ["N", "Q", 4], self.scores: ["N", "Q", len(self.labels)]})

    def label_lists(self) -> list[list[str]]:
        return [self.labels]

    def probabilities(self, outputs: Outputs) -> list[Floats]:
        """Return corners (N, Q, 4) and probabilities (N, Q, classes)."""
        return [outputs[self.boxes], activate(outputs[self.scores], self.activation, axis=2)]

    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        return [Boxes(self._best_of(corners, scores)[:topk]) for corners, scores in zip(*self.probabilities(outputs), strict=True)]

    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """Return the label of the best box."""
        numbers = outputs[self.scores]
        best: NDArray[np.int64] = numbers.reshape(len(numbers), -1).argmax(axis=1, keepdims=True) % len(self.labels)
        return best

    def to_scores(self, outputs: Outputs) -> dict[str, Floats | list[Floats]]:
        """Return both outputs; an evaluator decodes them as it does the outputs of the net."""
        return {name: outputs[name] for name in (self.boxes, self.scores)}

    def _best_of(self, corners: Floats, scores: Floats) -> list[BoxPrediction]:
        kept: list[BoxPrediction] = []
        for flat in np.argsort(-scores, axis=None, kind="stable"):
            row, label = divmod(int(flat), len(self.labels))
            if scores[row, label] < self.min_score or len(kept) == self.max_boxes:
                break
            left, top, right, bottom = map(float, corners[row])
            box = left, top, right, bottom
            if self.nms is None or all(each.label != label or _overlap(each.box, box) <= self.nms for each in kept):
                kept.append(BoxPrediction(label, self.labels[label], float(scores[row, label]), box))
        return kept


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Compute the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both) if areas > both else 0.0
