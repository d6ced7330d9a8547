"""A class for every pixel: a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from up.bundle.answers.answer import Activation, Answer, Floats, Outputs, OutputSpec, Result, activate, axes_problem
from up.types import Json

Level = Annotated[int, Field(ge=0, le=255)]
_OPACITY = 0.5


def default_palette(labels: int) -> list[tuple[int, int, int]]:
    """Colours that differ, black for label 0 (the bits of the label spread over the channels, as in PASCAL VOC)."""
    bits = [[(label >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)] for label in range(labels) for channel in range(3)]
    levels = [sum(each) for each in bits]
    return list(zip(levels[0::3], levels[1::3], levels[2::3], strict=True))


@dataclass(frozen=True)
class Mask(Result):
    """The label of every pixel: ``mask`` (H, W), in the size that the graph gives."""

    mask: NDArray[np.uint8]
    labels: Sequence[str]
    palette: Sequence[tuple[int, int, int]]

    def _found(self) -> list[tuple[int, int]]:
        """Labels with their pixels, most first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.labels))
        return [(int(label), int(counts[label])) for label in np.argsort(-counts, kind="stable") if counts[label]]

    def as_json(self) -> Json:
        """The labels in the mask with their pixels and their share of the mask, most first."""
        found = self._found()
        return [{"label": at, "name": self.labels[at], "pixels": n, "share": n / self.mask.size} for at, n in found]

    def csv_rows(self) -> Iterator[Sequence[object]]:
        return ((label, self.labels[label], pixels, f"{pixels / self.mask.size:.6f}") for label, pixels in self._found())

    def table_rows(self) -> Iterator[tuple[str, str, str]]:
        (label, pixels), *rest = self._found()
        others = ", ".join(f"{self.labels[other]} {share / self.mask.size:.3f}" for other, share in rest)
        yield self.labels[label], f"{pixels / self.mask.size:.3f}", others

    def draw(self, image: Image.Image) -> dict[str, Image.Image]:
        """The mask laid over the image, and the mask itself: a palette PNG whose levels are the labels."""
        plain = Image.fromarray(self.mask, "P")
        plain.putpalette([level for colour in self.palette for level in colour])
        return {"": Image.blend(image, plain.convert("RGB").resize(image.size, Image.Resampling.NEAREST), _OPACITY), "_mask": plain}


class PixelsAnswer(Answer):
    """A class for every pixel: ``output`` (N, classes, H, W) holds a number for each class and pixel."""

    kind: Literal["pixels"] = "pixels"
    output: str
    """The output that holds them."""
    labels: Annotated[list[str], Field(min_length=1, max_length=256)]
    """Names of the classes."""
    activation: Activation
    """What makes probabilities of the numbers; ``none``: they are."""
    palette: list[tuple[Level, Level, Level]] | None = None
    """[red, green, blue] of each class; null: chosen by the program."""

    columns: ClassVar = ("label", "name", "pixels", "share")
    headings: ClassVar = ("most", "share", "others")
    near_ties: ClassVar = 1e-3

    def misfit(self, outputs: Sequence[OutputSpec]) -> str | None:
        if self.palette is not None and len(self.palette) != len(self.labels):
            return f"palette has {len(self.palette)} colours for {len(self.labels)} labels"
        return axes_problem(outputs, {self.output: ["N", len(self.labels), "H", "W"]})

    def label_lists(self) -> list[list[str]]:
        return [self.labels]

    def probabilities(self, outputs: Outputs) -> list[Floats]:
        """Probabilities (N, classes, H, W)."""
        return [activate(outputs[self.output], self.activation)]

    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        masks = outputs[self.output].argmax(axis=1).astype(np.uint8)
        palette = self.palette or default_palette(len(self.labels))
        return [Mask(mask, self.labels, palette) for mask in masks]

    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """The label of each pixel."""
        found = outputs[self.output].argmax(axis=1)
        best: NDArray[np.int64] = found.reshape(len(found), -1)
        return best
