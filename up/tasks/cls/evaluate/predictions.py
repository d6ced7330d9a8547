"""What an evaluation keeps of every image: a few numbers a head, packed, to be gathered over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from up.errors import UserError
from up.text import count

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

UNREADABLE = -1  # the class predicted by scores that are not finite: never right


_OF_AN_IMAGE = ("topk_idx", "topk_score", "gt", "rank", "scores", "loss", "loss_weight")


@dataclass(frozen=True)
class HeadPredictions:
    """One head's answers to n images.

    ``topk_idx`` (n, K) classes by falling score, the lower class first among equals, ``UNREADABLE`` where a score of
    the image is not finite; ``topk_score`` (n, K). ``gt`` is (n,) labels, (n, C) bool for sets of labels, or None.
    ``rank`` (n,) is how many classes stand before the true one. ``scores`` (n, C) only when they are kept. ``loss`` (n,)
    is the share of each image in the criterion and ``loss_weight`` (n,) its weight, where the net computes them.
    """

    classes: int
    topk_idx: Array
    topk_score: Array
    gt: Array | None = None
    rank: Array | None = None
    scores: Array | None = None
    loss: Array | None = None
    loss_weight: Array | None = None

    @property
    def preds(self) -> Array:
        """The most probable class of each image (n,)."""
        first: Array = self.topk_idx[:, 0]
        return first

    def of_classes(self, wanted: Sequence[int]) -> HeadPredictions:
        """The images whose label is in ``wanted``; of sets of labels all images, with the columns of these classes alone."""
        assert self.gt is not None, "a head without labels has none of any class"
        if self.gt.ndim == 2:
            assert self.scores is not None
            chosen = list(wanted)
            return replace(self, classes=len(chosen), gt=self.gt[:, chosen], scores=self.scores[:, chosen])
        kept = np.isin(self.gt, wanted)
        arrays = {name: getattr(self, name) for name in _OF_AN_IMAGE}
        return replace(self, **{name: values[kept] for name, values in arrays.items() if values is not None})


@dataclass(frozen=True)
class Predictions:
    """All heads' answers, by rising ``index`` (n,), each image once."""

    index: Array
    filename: list[str]
    heads: list[HeadPredictions]

    def __len__(self) -> int:
        return len(self.filename)


class Recorder:
    """Collects batch by batch; the compact arrays stay on the device until they are asked for, so that nothing waits.

    ``depth`` is how many classes are kept for each image; ``keep_scores`` keeps all scores (on the CPU).
    """

    def __init__(self, *, depth: int, keep_scores: bool, multilabel: bool) -> None:
        self.depth = depth
        self.keep_scores = keep_scores or multilabel
        self.multilabel = multilabel
        self._classes: list[int] = []
        self._filenames: list[str] = []
        self._columns: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(
        self, scores: Tensor | Sequence[Tensor], batch: Mapping[str, Any], losses: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> None:
        """``scores`` (B, C), or a list of such; ``batch`` with ``filename``, ``index`` and, when known, ``gt``.

        ``losses``: for each head the shares (B,) of the images in the loss, and their weights (B,).
        """
        heads = [scores] if isinstance(scores, Tensor) else list(scores)
        labels = self._labels(batch.get("gt"), heads)
        self._classes = [head.shape[1] for head in heads]
        self._filenames.extend(batch["filename"])
        self._append("index", torch.as_tensor(batch["index"]))
        for number, (head, gt) in enumerate(zip(heads, labels, strict=True)):
            self._add_head(number, head.float(), gt)
        for number, (shares, weights) in enumerate(losses):
            self._append(f"loss{number}", shares.float())
            self._append(f"loss_weight{number}", weights.float())

    def state(self) -> dict[str, Any]:
        """The arrays as plain numpy, lists and ints, to be sent to another rank."""
        arrays = {name: torch.cat(parts).cpu().numpy() for name, parts in self._columns.items()}
        return {"classes": list(self._classes), "filename": list(self._filenames), **arrays}

    def _add_head(self, number: int, scores: Tensor, gt: Tensor | None) -> None:
        order = scores.sort(dim=1, descending=True, stable=True)
        readable = scores.isfinite().all(dim=1)
        depth = min(self.depth, scores.shape[1])
        self._append(f"topk_idx{number}", order.indices[:, :depth].int().where(readable[:, None], UNREADABLE))
        self._append(f"topk_score{number}", order.values[:, :depth].where(readable[:, None], 0.0))
        if self.keep_scores:
            self._append(f"scores{number}", scores.where(readable[:, None], 0.0).cpu())
        if gt is None:
            return
        gt = gt.to(scores.device)
        self._append(f"gt{number}", gt > 0.5 if self.multilabel else gt.int())
        if not self.multilabel:
            self._append(f"rank{number}", rank_of(scores, gt.long()).where(readable, scores.shape[1]).int())

    def _append(self, name: str, values: Tensor) -> None:
        self._columns.setdefault(name, []).append(values)

    def _labels(self, gt: Tensor | None, heads: Sequence[Tensor]) -> Sequence[Tensor | None]:
        if gt is None:
            return [None] * len(heads)
        if self.multilabel:
            if len(heads) > 1 or gt.shape != heads[0].shape:
                raise UserError(
                    f"true needs one head and labels of the shape of its scores, got {count(len(heads), 'head')}, scores "
                    f"{tuple(heads[0].shape)} and labels {tuple(gt.shape)}",
                    fix="Set multilabel: true on the data set too, and num_classes to one number.",
                    key="multilabel",
                )
            return [gt]
        columns = gt.unbind(dim=1) if gt.ndim == 2 and not gt.is_floating_point() else [gt]
        if len(columns) != len(heads) or columns[0].ndim != 1:
            raise UserError(
                f"the labels of a batch have the shape {tuple(gt.shape)}, but the net has {len(heads)} head(s). "
                "Expected one label a head for every image (or multilabel: true on the evaluator for sets of labels)."
            )
        return list(columns)


def rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """How many of the C classes stand before the label (B,): higher scores, and lower classes of equal score."""
    true = scores.gather(1, labels[:, None])
    lower_class = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > true) | ((scores == true) & lower_class)).sum(dim=1)


def combine(states: Sequence[Mapping[str, Any]]) -> Predictions:
    """One ``Predictions`` of the states of all ranks: sorted by index, each image once however often it was sent."""
    filled = [state for state in states if state["filename"]]
    if not filled:
        return Predictions(np.zeros(0, dtype=np.int64), [], [])
    names = [name for name in filled[0] if name not in {"classes", "filename"}]
    assert all(set(state) == set(filled[0]) and state["classes"] == filled[0]["classes"] for state in filled)
    # np.unique gives the first place of each index, in rising order of the index.
    index, places = np.unique(np.concatenate([state["index"] for state in filled]), return_index=True)
    columns = {name: np.concatenate([state[name] for state in filled])[places] for name in names}
    filenames = [name for state in filled for name in state["filename"]]
    heads = list(_heads(filled[0]["classes"], columns))
    return Predictions(index, [filenames[place] for place in places], heads)


def _heads(classes: Sequence[int], columns: Mapping[str, Array]) -> Iterator[HeadPredictions]:
    for number, width in enumerate(classes):
        yield HeadPredictions(
            classes=width,
            topk_idx=columns[f"topk_idx{number}"],
            topk_score=columns[f"topk_score{number}"],
            gt=columns.get(f"gt{number}"),
            rank=columns.get(f"rank{number}"),
            scores=columns.get(f"scores{number}"),
            loss=columns.get(f"loss{number}"),
            loss_weight=columns.get(f"loss_weight{number}"),
        )
