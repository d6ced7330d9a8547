"""A class for every pixel: a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from up.bundle.answers.answer import Activation, Answer, Floats, Outputs, OutputSpec, Result, activate, axes_problem
from up.bundle.operations import Placement
from up.types import Json

Level = Annotated[int, Field(ge=0, le=255)]
UNSEEN = 255
"""Level of the pixels of a mask that were cropped away before the graph saw the image."""
_UNSEEN_COLOUR = (224, 224, 192)  # of pixels without a label in PASCAL VOC
_OPACITY = 0.5


def default_palette(labels: int) -> list[tuple[int, int, int]]:
    """Choose distinct colours, black for label 0, by spreading the bits of a label over the channels as in PASCAL VOC."""

    def level(label: int, channel: int) -> int:
        return sum((label >> 3 * bit + channel & 1) << 7 - bit for bit in range(3))

    return [(level(label, 0), level(label, 1), level(label, 2)) for label in range(labels)]


@dataclass(frozen=True)
class Mask(Result):
    """Label of every pixel: ``mask`` (H, W), with ``UNSEEN`` where the graph saw nothing of the image."""

    mask: NDArray[np.uint8]
    labels: Sequence[str]
    palette: Sequence[tuple[int, int, int]]

    def _found(self) -> list[tuple[int, int, float]]:
        """Count the pixels of each label and their share, most frequent first."""
        counts = np.bincount(self.mask[self.mask != UNSEEN], minlength=len(self.labels))
        seen = max(1, int(counts.sum()))
        return [(int(at), int(counts[at]), int(counts[at]) / seen) for at in np.argsort(-counts, kind="stable") if counts[at]]

    def as_json(self) -> Json:
        """Return the labels in the mask with their pixels and their share of the seen ones, most frequent first."""
        return [{"label": at, "name": self.labels[at], "pixels": number, "share": share} for at, number, share in self._found()]

    def csv_rows(self) -> Iterator[Sequence[object]]:
        return ((at, self.labels[at], number, f"{share:.6f}") for at, number, share in self._found())

    def table_rows(self) -> Iterator[tuple[str, str, str]]:
        (most, _, share), *rest = self._found()
        yield self.labels[most], f"{share:.3f}", ", ".join(f"{self.labels[at]} {share:.3f}" for at, _, share in rest)

    def on_image(self, placement: Placement) -> Mask:
        """Resize the mask to the whole image: each pixel gets the label of the nearest one in the output."""
        rows, columns = (_sources(placement, axis, self.mask.shape[axis]) for axis in (0, 1))
        inside = np.ix_((rows >= 0) & (rows < self.mask.shape[0]), (columns >= 0) & (columns < self.mask.shape[1]))
        whole = np.full(placement.size, UNSEEN, dtype=np.uint8)
        whole[inside] = self.mask[rows[inside[0]], columns[inside[1]]]
        return replace(self, mask=whole)

    def as_image(self) -> Image.Image:
        """Convert the mask to a palette image whose levels are the labels."""
        image = Image.fromarray(self.mask, "P")
        unused = [(0, 0, 0)] * (UNSEEN - len(self.palette))
        image.putpalette([level for colour in (*self.palette, *unused, _UNSEEN_COLOUR) for level in colour])
        return image

    def draw(self, image: Image.Image) -> Image.Image:
        """Blend the colours of the mask into the image."""
        coloured = Image.blend(image, self.as_image().convert("RGB"), _OPACITY)
        coloured.paste(image, mask=Image.fromarray(self.mask == UNSEEN))
        return coloured


def _sources(placement: Placement, axis: int, pixels: int) -> NDArray[np.int64]:
    """Map each row (axis 0) or column of the image to one of an output of ``pixels``; outside of its range if it is unseen."""
    centres = (np.arange(placement.size[axis]) + 0.5) * placement.scale[axis] + placement.offset[axis]
    sources: NDArray[np.int64] = np.floor(centres * (pixels / placement.input_size[axis])).astype(np.int64)
    return sources


class PixelsAnswer(Answer):
    """A class for every pixel: ``output`` (N, classes, H, W) holds a number for each class and pixel."""

    kind: Literal["pixels"] = "pixels"
    output: str
    """Name of the output."""
    labels: Annotated[list[str], Field(min_length=1, max_length=UNSEEN)]
    """Names of the classes."""
    activation: Activation
    """Activation that makes probabilities of the numbers; ``none``: they are probabilities."""
    palette: list[tuple[Level, Level, Level]] | None = None
    """[red, green, blue] of each class; null: chosen by the program."""

    columns: ClassVar = ("label", "name", "pixels", "share")
    headings: ClassVar = ("most", "share", "others")
    is_spatial: ClassVar = True
    near_ties: ClassVar = 1e-3

    def misfit(self, outputs: Sequence[OutputSpec]) -> str | None:
        if self.palette is not None and len(self.palette) != len(self.labels):
            return f"palette has {len(self.palette)} colours for {len(self.labels)} labels"
        return axes_problem(outputs, {self.output: ["N", len(self.labels), "H", "W"]})

    def label_lists(self) -> list[list[str]]:
        return [self.labels]

    def probabilities(self, outputs: Outputs) -> list[Floats]:
        """Return probabilities (N, classes, H, W)."""
        return [activate(outputs[self.output], self.activation)]

    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        masks = outputs[self.output].argmax(axis=1).astype(np.uint8)
        palette = self.palette or default_palette(len(self.labels))
        return [Mask(mask, self.labels, palette) for mask in masks]

    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """Return the label of each pixel."""
        found = outputs[self.output].argmax(axis=1)
        best: NDArray[np.int64] = found.reshape(len(found), -1)
        return best
