"""The seam between the outputs of a graph and predictions: what every kind of answer supplies. Numpy only."""

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
"""The outputs of a graph by name, each (N, …)."""
Activation = Literal["none", "softmax", "sigmoid"]


class OutputSpec(Entry):
    """One output of the graph."""

    name: Annotated[str, Field(min_length=1)]
    """Its name."""
    dtype: Literal["float32"] = "float32"
    """Its type."""
    axes: Annotated[list[AtLeast1 | str], Field(min_length=1, max_length=6)]
    """Its shape: numbers, and names for sizes that are free. The first is ``N``, the images of a batch."""


class Result(ABC):
    """What a model predicts for one image."""

    def on_image(self, placement: Placement) -> Result:
        """The result in pixels of the whole image, which ``placement`` puts into the input of the graph."""
        return self

    @abstractmethod
    def as_json(self) -> Json:
        """Plain values, ``predictions`` of an image in JSON."""

    @abstractmethod
    def csv_rows(self) -> Iterator[Sequence[object]]:
        """Values in the order of the answer's ``columns``."""

    @abstractmethod
    def table_rows(self) -> Iterator[tuple[str, str, str]]:
        """Values in the order of the answer's ``headings``."""

    @abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """The whole image with the result on it."""


class Answer(Entry, ABC):
    """How the outputs of a graph become predictions."""

    columns: ClassVar[tuple[str, ...]]
    """Of a CSV file, between ``file`` and ``error``."""
    headings: ClassVar[tuple[str, str, str]]
    """Of a table, after ``image``."""
    is_spatial: ClassVar[bool] = False
    """Whether results name places in the image, so that ``on_image`` brings them there."""
    near_ties: ClassVar[float] = 0.0
    """Share of ``best`` that rounding errors may change."""

    @abstractmethod
    def misfit(self, outputs: Sequence[OutputSpec]) -> str | None:
        """Why the outputs of a graph are not those that this answer reads; None if they are."""

    @abstractmethod
    def label_lists(self) -> list[list[str]]:
        """Names of the labels, a list for each classifier."""

    @abstractmethod
    def probabilities(self, outputs: Outputs) -> list[Floats]:
        """Scores (N, …) for the outputs of a batch."""

    @abstractmethod
    def decode(self, outputs: Outputs, topk: int | None = None) -> list[Result]:
        """The result of each image of a batch; ``topk`` limits how many predictions it lists."""

    @abstractmethod
    def best(self, outputs: Outputs) -> NDArray[np.int64]:
        """(N, K): labels that must not differ between a graph and its reference."""

    def to_scores(self, outputs: Outputs) -> dict[str, Floats | list[Floats]]:
        """What a net in evaluation mode puts into its record, for the task's evaluator."""
        found = self.probabilities(outputs)
        return {"scores": found[0] if len(found) == 1 else found}


def activate(values: Floats, activation: Activation, axis: int = 1) -> Floats:
    """Probabilities of ``values``; softmax is over ``axis``."""
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
    """Whether a shape is ``wanted``, where a name stands for any size; ``N`` only for a free number of images."""
    return len(found) == len(wanted) and all(
        have == want or (isinstance(want, str) and want != "N") for have, want in zip(found, wanted, strict=True)
    )


def axes_problem(outputs: Sequence[OutputSpec], wanted: Mapping[str, Sequence[int | str]]) -> str | None:
    """Why ``outputs`` are not those of ``wanted``, names with their axes."""
    found = {output.name: output.axes for output in outputs}
    fits = found.keys() == wanted.keys() and all(axes_fit(axes, wanted[name]) for name, axes in found.items())
    return None if fits else f"the graph gives {found}, expected {dict(wanted)}"
