"""Sections of a page about a run, as a task supplies them: tables, galleries, drawings and text, without HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor, nn

from up.data.bad_images import BadImage
from up.data.dataset import KeyedDataset
from up.data.records import Batch, Dataset
from up.engine.evaluate import Evaluator
from up.intervals import wilson
from up.pages.images import thumbnail
from up.tracking.figure_hook import photo
from up.types import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data_co = TypeVar("Data_co", bound=Dataset, covariant=True)


@dataclass(frozen=True)
class Evidence(Generic[Data_co]):
    """An evaluated checkpoint: the evaluator with all images, the data set, and the net in evaluation mode.

    ``prepare(indices)`` returns samples of the data set as a batch that the net accepts, on its device.
    """

    evaluator: Evaluator
    data: Data_co
    net: nn.Module
    prepare: Callable[[Sequence[int]], Batch]


@dataclass(frozen=True)
class Outcomes:
    """Results image by image: file name, label and prediction as text, whether the prediction is correct, index in the data set.

    ``head`` is the number of the head, None for nets with one.
    """

    filenames: Sequence[str]
    labels: Sequence[str]
    predictions: Sequence[str]
    correct: Sequence[bool]
    index: Sequence[int] | None = None
    head: int | None = None


def original_of(data: Dataset, index: int, side: int = 160) -> str | None:
    """Return a sample's image before its transforms as a data URI; None if the data set cannot read it alone."""
    if not isinstance(data, KeyedDataset):
        return None
    with suppress(BadImage, OSError):
        image = data.read(index).image
        return thumbnail(photo(image) if isinstance(image, Tensor) else image, side)
    return None


def share_of(correct: int, n: int) -> Json:
    """Return a share with its 95 % interval by Wilson's method, a cell of format ``interval``; None for no images."""
    if not n:
        return None
    low, high = wilson(correct, n)
    return {"value": correct / n, "low": low, "high": high, "n": n}


@dataclass(frozen=True)
class Table:
    """A table. ``columns`` are key, heading and format: text, number, count, percent, interval, duration or size."""

    columns: Sequence[tuple[str, str, str]]
    rows: Sequence[Mapping[str, Json]]
    caption: str = ""
    folded: str = ""
    """Line that opens the table, where it is folded."""


@dataclass(frozen=True)
class GalleryItem:
    """Images side by side with a title and lines; ``images`` are data URIs. ``tone``: ``right`` or ``wrong``."""

    images: Sequence[str]
    title: str
    lines: Sequence[str] = ()
    tone: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images with captions."""

    items: Sequence[GalleryItem]
    wide: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawing of ``size`` inches. ``data`` are its numbers, for the JSON file."""

    name: str
    draw: Callable[[Figure], object]
    size: tuple[float, float]
    caption: str = ""
    data: Json = None


@dataclass(frozen=True)
class Plots:
    """Drawings side by side."""

    items: Sequence[Plot]


@dataclass(frozen=True)
class Cards:
    """Numbers that matter most: label, value as text, and a note."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Note:
    """A paragraph; ``missing`` is what the page cannot show, and why."""

    text: str
    missing: bool = False


@dataclass(frozen=True)
class Code:
    """Lines of text as a terminal shows them."""

    text: str


Block = Table | Gallery | Plot | Plots | Cards | Note | Code


@dataclass(frozen=True)
class PageSection:
    """A section of a page, with its ``name`` in links and in the JSON file."""

    name: str
    title: str
    blocks: Sequence[Block]
    data: Mapping[str, Json] = field(default_factory=dict)
    """Further numbers for the JSON file."""
