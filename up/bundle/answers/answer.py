"""The interface of all kinds of answers, from the outputs of a graph to predictions. Numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from up.bundle.operations import AtLeast1, Entry, Placement
from up.types import Json

Floats: TypeAlias = NDArray[np.float32]
Outputs: TypeAlias = Mapping[str, Floats]
"""Outputs of a graph by name, each (N, …)."""
Activation = Literal["none", "softmax", "sigmoid"]


class OutputSpec(Entry):
    """Output of the graph."""

    name: Annotated[str, Field(min_length=1)]
    dtype: Literal["float32"] = "float32"
    axes: Annotated[list[AtLeast1 | str], Field(min_length=1, max_length=6)]
    """Shape: numbers, and names for free sizes. The first is ``N``, the images of a batch."""


class Result(ABC):
    """Prediction of a model for one image."""

    def on_image(self, placement: Placement) -> Result:
        """Return the result in pixels of the whole image, whose ``placement`` in the input of the graph is given."""
        return self

    @abstractmethod
    def as_json(self) -> Json:
        """Return plain values: ``predictions`` of an image in JSON."""

    @abstractmethod
    def csv_rows(self) -> Iterator[Sequence[object]]:
        """Yield rows in the order of the answer's ``columns``."""

    @abstractmethod
    def table_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield rows in the order of the answer's ``headings``."""

    @abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """Draw the result on a copy of the whole image."""


class Answer(Entry, ABC):
    """Conversion from the outputs of a graph to predictions."""

    columns: ClassVar[tuple[str, ...]]
    """Columns of a CSV file, between ``file`` and ``error``."""
    headings: ClassVar[tuple[str, str, str]]
    """Columns of a table, after ``image``."""
    is_spatial: ClassVar[bool] = False
    """Whether results have positions in the image, which ``on_image`` maps."""
    near_ties: ClassVar[float] = 0.0
    """Share of ``best`` that rounding errors may change."""

    @abstractmethod
    def misfit(self, outputs: Sequence[OutputSpec]) -> str | None:
        """Say why this answer cannot read the outputs of a graph; None if it can."""

    @abstractmethod
    def label_lists(self) -> list[list[str]]:
        """Return the names of the labels, a list for each classifier."""

    @abstractmethod
    def probabilities(self, outputs: Outputs) -> list[Floats]:
        """Compute scores (N, …) from the outputs of a batch."""

    @abstractmethod
    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        """Return the result of each image of a batch; ``topk`` limits the predictions of an image."""

    @abstractmethod
    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """Return labels (N, K) that must not differ between a graph and its reference."""

    def to_scores(self, outputs: Outputs) -> dict[str, Floats | list[Floats]]:
        """Return the record of a net in evaluation mode, for the task's evaluator."""
        found = self.probabilities(outputs)
        return {"scores": found[0] if len(found) == 1 else found}


def activate(values: Floats, activation: Activation, axis: int = 1) -> Floats:
    """Convert ``values`` to probabilities; softmax is over ``axis``."""
    if activation == "softmax":
        raised = np.exp(values - values.max(axis=axis, keepdims=True))
        shares: Floats = raised / raised.sum(axis=axis, keepdims=True)
        return shares
    if activation == "sigmoid":
        with np.errstate(over="ignore"):  # a large negative logit: exp overflows to infinity, and 0 is the right score
            scores: Floats = np.reciprocal(1 + np.exp(-values))
        return scores
    return values


def axes_fit(found: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    """Whether a shape is ``wanted``, in which a name stands for any size, but ``N`` only for a free batch size."""
    return len(found) == len(wanted) and all(
        have == want or (isinstance(want, str) and want != "N") for have, want in zip(found, wanted, strict=True)
    )


def axes_problem(outputs: Sequence[OutputSpec], wanted: Mapping[str, Sequence[int | str]]) -> str | None:
    """Say how ``outputs`` differ from ``wanted``, names with their axes; None if they do not."""
    found = {output.name: output.axes for output in outputs}
    fits = found.keys() == wanted.keys() and all(axes_fit(axes, wanted[name]) for name, axes in found.items())
    return None if fits else f"the graph gives {found}, expected {dict(wanted)}"
