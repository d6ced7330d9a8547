"""Confusion matrix: counts of labels and predictions, and a figure of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from up.figures import FAINT, RIGHT, WRONG, is_drawable, missing_font, render, shortened
from up.tasks.cls.evaluate.predictions import Floats, HeadPredictions, Ints
from up.tasks.cls.evaluate.scoring import share
from up.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LABELLED = 30  # classes; more have numbers on the axes, and their most frequent confusions beside the matrix
LARGEST = 1000  # classes; a larger matrix is neither drawn nor written in full
_BLOCKS = 250  # along a side of the figure: each is several pixels, so that a single wrong class can be seen
PAIRS = 12  # most frequent confusions
_LONGEST_NAME = 24  # letters


def confusion_matrix(head: HeadPredictions) -> Ints:
    """Count images (C, C) by true class (row) and predicted class (column), without those that have no finite score."""
    readable = head.preds >= 0
    cells = head.labels[readable].astype(np.int64) * head.classes + head.preds[readable]
    return np.bincount(cells, minlength=head.classes**2).reshape(head.classes, head.classes)


def confusion_figure(matrix: Ints, names: Sequence[str]) -> bytes:
    """Draw a matrix (C, C) as a PNG: shares of each true class, correct ones blue and wrong ones red.

    Up to ``LABELLED`` classes it has names and counts, above that class numbers and the most frequent confusions.
    """
    classes = len(matrix)
    known = names if classes <= LABELLED else [names[c] for pair in most_confused(matrix) for c in pair[:2]]
    if (line := missing_font(known)) is not None:
        warnings.warn(line, stacklevel=2)
    shares = share(matrix, np.broadcast_to(matrix.sum(axis=1, keepdims=True), matrix.shape))
    signed = np.where(np.eye(classes, dtype=bool), shares, -shares)
    images = int(matrix.sum())
    correct = f"{100 * matrix.trace() / max(1, images):.2f} % correct"
    note = f"{count(images, 'image')}, {count(classes, 'class')}, {correct}"
    if classes > LABELLED:
        return render(11, 5.2, lambda figure: _many(figure, signed, matrix, names, note))
    cell = 0.9 if classes <= 5 else 0.5 if classes <= 12 else 0.3
    longest = max(len(_shown(names, c)) for c in range(classes))
    side = classes * cell + 0.075 * longest
    return render(max(side + 1.9, 5), max(side + 1.3, 3.3), lambda figure: _few(figure, signed, matrix, names, note))


def _few(figure: Figure, signed: Floats, matrix: Ints, names: Sequence[str], note: str) -> None:
    classes = len(matrix)
    size = 10 if classes <= 12 else 7
    axes = figure.subplots()
    image = _cells(figure, axes, signed, note)
    shown = [_shown(names, c) for c in range(classes)]
    axes.set_xticks(range(classes), shown, fontsize=size)
    if classes * max(map(len, shown)) > 60:
        axes.tick_params("x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), shown, fontsize=size)
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#e2e5ea", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        number, strong = int(matrix[row, column]), abs(image.get_array()[row, column]) > 0.6  # type: ignore[index]
        text = str(number) if number < 10_000 else f"{number / 1000:.0f}k"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if strong else "black", in_layout=False)


def _many(figure: Figure, signed: Floats, matrix: Ints, names: Sequence[str], note: str) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    block = -(-len(matrix) // _BLOCKS)
    image = _cells(figure, left, _in_blocks(signed, block), note)
    edge = len(matrix) - 0.5
    image.set_extent((-0.5, edge, edge, -0.5))
    for axis in ("x", "y"):
        left.locator_params(axis=axis, integer=True, nbins=6)
    if block > 1:
        left.set_xlabel(f"predicted class (each point: the largest share of {block} x {block} classes)")
    pairs = most_confused(matrix)
    right.set_title("most frequent confusions, images", fontsize=10, loc="left")
    right.barh(range(len(pairs)), [pair[2] for pair in pairs], color=WRONG, height=0.35)
    for place, (true, predicted, images) in enumerate(pairs):
        named = f"{images:,}  {_shown(names, true)} → {_shown(names, predicted)}"
        right.text(0, place - 0.3, named, fontsize=8, va="bottom")
    if not pairs:
        right.text(0, 0, "none", color=FAINT)
    right.set_ylim(PAIRS - 0.5, -1)
    right.set_axis_off()


def _cells(figure: Figure, axes: Axes, signed: Floats, note: str) -> AxesImage:
    """Draw shares, those of wrong predictions negative; the square root shows the few wrong ones of a good net, too."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("confusion", [WRONG, "white", RIGHT])
    image = axes.imshow(np.sign(signed) * np.sqrt(abs(signed)), colours, vmin=-1, vmax=1, interpolation="nearest")
    figure.suptitle("Confusion matrix", weight="bold")
    axes.set_title(note, color=FAINT, fontsize=9)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8, aspect=25)
    bar.ax.set_title("correct", color=RIGHT, fontsize=9, pad=10, loc="left")
    bar.ax.set_xlabel("wrong", color=WRONG, fontsize=9, labelpad=8, loc="left")
    ticks = [-1, -0.5, -0.1, 0, 0.1, 0.5, 1]
    bar.set_ticks([float(np.sign(tick) * abs(tick) ** 0.5) for tick in ticks], labels=[f"{100 * abs(tick):g} %" for tick in ticks])
    return image


def _in_blocks(signed: Floats, side: int) -> Floats:
    """Reduce blocks of ``side`` x ``side`` cells to the largest share in each, on the diagonal to the mean of the correct ones."""
    classes = len(signed)
    blocks = -(-classes // side)
    padded = np.zeros((blocks * side, blocks * side))
    padded[:classes, :classes] = signed
    smallest: Floats = padded.reshape(blocks, side, blocks, side).min(axis=(1, 3))
    np.fill_diagonal(smallest, [part.mean() for part in np.split(signed.diagonal(), range(side, classes, side))])
    return smallest


def most_confused(matrix: Ints) -> list[tuple[int, int, int]]:
    """List true class, predicted class and images of the most frequent confusions in a matrix (C, C), ``PAIRS`` at most."""
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    return [(*divmod(int(cell), len(matrix)), int(wrong.flat[cell])) for cell in order if wrong.flat[cell]]


def _shown(names: Sequence[str], number: int) -> str:
    return shortened(names[number], _LONGEST_NAME) if is_drawable(names[number]) else f"#{number}"
