"""Section of a run's report: the worst mistakes, with Grad-CAM beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from up.errors import UserError
from up.figures import missing_matplotlib, overlaid
from up.pages.images import thumbnail
from up.tasks.cls.data.image_dataset import ImageDataset
from up.tasks.cls.evaluate.predictions import Bools, Floats, HeadPredictions, Ints
from up.tasks.cls.evaluate.row_file import blocks_of
from up.tasks.report import Block, Evidence, Gallery, GalleryItem, Note, PageSection, original_of
from up.text import count, some_of
from up.tracking.figure_hook import photo
from up.tracking.grad_cam import grad_cam, last_convolution

WORST = 24
_AT_ONCE = 8  # images of a backward pass
_SIDE = 160  # pixels of a thumbnail
_TINY = 1e-45


class GalleryImages:
    """Images of the rows of an evaluation as data URIs: originals, and Grad-CAM over what the net sees."""

    def __init__(self, evidence: Evidence[ImageDataset], index: Ints) -> None:
        self.evidence = evidence
        self.index = index
        self.reason = missing_matplotlib("Grad-CAM") or ""
        """Why there is no Grad-CAM; empty where there is."""

    def original(self, row: int) -> str | None:
        """Return the image as its reader returns it; None if it cannot be read."""
        return original_of(self.evidence.data, int(self.index[row]), _SIDE)

    def explained(self, rows: Sequence[int]) -> list[str | None]:
        """Return Grad-CAM of the prediction of each row, over the input of the net."""
        found: list[str | None] = []
        for at in range(0, len(rows), _AT_ONCE):
            part = rows[at : at + _AT_ONCE]
            found += [None] * len(part) if self.reason else self._maps(part)
        return found

    def _maps(self, rows: Sequence[int]) -> list[str | None]:
        batch, net = self.evidence.prepare([int(self.index[row]) for row in rows]), self.evidence.net
        try:
            maps = grad_cam(net, batch.image, last_convolution(net, batch.image))
        except UserError as error:
            self.reason = f"There is no Grad-CAM: {error}"
            return [None] * len(rows)
        return [thumbnail(overlaid(photo(image), heat), _SIDE) for image, heat in zip(batch.image, maps.shown(), strict=True)]


def no_mistakes(head: HeadPredictions) -> Note:
    """Return the note of a report without wrong predictions: none, or only scores that are not finite."""
    unreadable = int((head.preds < 0).sum())
    if not unreadable:
        return Note("No image is predicted wrongly.")
    wrong = f"The scores of {unreadable:,} of {count(len(head.preds), 'image')} are not finite; these count as wrong."
    return Note(wrong if unreadable == len(head.preds) else f"{wrong} No other image is predicted wrongly.")


def mistakes_section(
    head: HeadPredictions, names: Sequence[str], filenames: Sequence[str], shown: GalleryImages, suffix: str
) -> PageSection:
    """Return the wrong images with the largest loss, each with Grad-CAM of the prediction."""
    of = f" of head {suffix.removeprefix('-head')}" if suffix else ""
    name, title = f"mistakes{suffix}", f"Worst mistakes{of}"
    wrong = np.flatnonzero((head.preds != head.labels) & (head.preds >= 0))
    if not len(wrong):
        return PageSection(name, title, [no_mistakes(head)])
    assert head.scores is not None, "a report keeps all scores"
    of_label = head.scores[np.arange(len(head.labels)), head.labels].astype(np.float64)
    loss = -np.log(np.maximum(of_label, _TINY))
    worst = wrong[np.argsort(-loss[wrong], kind="stable")][:WORST].tolist()
    items = []
    for row, heat in zip(worst, shown.explained(worst), strict=True):
        label, prediction = names[int(head.labels[row])], names[int(head.preds[row])]
        lines = [
            f"loss {loss[row]:.2f}",
            f"{prediction} {100 * head.topk_score[row, 0]:.1f} %, {label} {100 * of_label[row]:.1f} %",
            filenames[row],
        ]
        pair = [each for each in (shown.original(row), heat) if each is not None]
        items.append(GalleryItem(pair, f"{label}, predicted {prediction}", lines, "wrong"))
    text = f"{count(len(wrong), 'image')} of {len(head.labels):,} wrong; the {len(items)} with the largest loss, "
    text += "which is −log of the label's score."
    if not shown.reason:
        text += " Beside each image: what raises the prediction (Grad-CAM, bright: most), over what the net sees."
    notes = [Note(shown.reason, missing=True)] if shown.reason else []
    return PageSection(name, title, [Note(text), *notes, Gallery(items, wide=not shown.reason)])


def _cross_entropy(scores: Floats, sets: Bools) -> Floats:
    """Return the binary cross-entropy of each image, summed over the classes."""
    p = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    loss: Floats = -np.where(sets, np.log(p), np.log(1 - p)).sum(axis=1)
    return loss


def mistakes_of_sets(head: HeadPredictions, names: Sequence[str], filenames: Sequence[str], shown: GalleryImages) -> PageSection:
    """Return the images whose set of labels is most wrong, by binary cross-entropy."""
    assert head.scores is not None
    parts = [_cross_entropy(head.scores[rows], head.labels[rows]) for rows in blocks_of(*head.scores.shape)]
    loss = np.concatenate(parts or [np.zeros(0)])
    wrong = np.flatnonzero((head.sets != head.labels).any(axis=1))
    items = []
    for row in wrong[np.argsort(-loss[wrong], kind="stable")][:WORST].tolist():
        missed = [names[c] for c in np.flatnonzero(head.labels[row] & ~head.sets[row]).tolist()]
        added = [names[c] for c in np.flatnonzero(head.sets[row] & ~head.labels[row]).tolist()]
        title = "; ".join(
            [*([f"missed {some_of(missed, 3)}"] if missed else []), *([f"added {some_of(added, 3)}"] if added else [])]
        )
        original = shown.original(row)
        items.append(GalleryItem([original] if original else [], title, [f"loss {loss[row]:.2f}", filenames[row]], "wrong"))
    text = (
        f"{count(len(wrong), 'image')} of {len(head.labels):,} with another set of labels; the {len(items)} with the largest loss."
    )
    missing = "Confusions and calibration are for one label an image: a set of labels is confused with no single class."
    blocks: list[Block] = [Note(text), *([Gallery(items)] if items else []), Note(missing, missing=True)]
    return PageSection("mistakes", "Worst mistakes", blocks)
