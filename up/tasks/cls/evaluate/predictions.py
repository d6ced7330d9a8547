"""Predictions of all images of an evaluation: a few numbers a head, packed, to be gathered over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from up.data.packed import PackedStrings
from up.errors import UserError
from up.tasks.cls.evaluate.row_file import Array, RowFile, joined, rows_at
from up.tasks.cls.model.heads import heads_of, label_columns
from up.text import count
from up.types import Kwargs, Record

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]

UNREADABLE = -1  # the class predicted by scores that are not finite: never correct
_BLOCK = 4096  # images whose tensors and names wait to be packed
_COLUMNS = ("topk_idx", "topk_score", "gt", "rank", "scores", "loss", "loss_weight")  # of a head, one row an image


@dataclass(frozen=True)
class HeadPredictions:
    """Predictions of one head for n images.

    ``topk_idx`` (n, K) classes by falling score, the lower class first among equals, ``UNREADABLE`` where a score of
    the image is not finite; ``topk_score`` (n, K). ``gt`` is (n,) labels, (n, C) bool for sets of labels, or None.
    ``rank`` (n,) is the number of classes before the label. ``scores`` (n, C) only when they are kept. ``loss`` (n,)
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

    @property
    def labels(self) -> Array:
        """``gt`` of a head with labels."""
        assert self.gt is not None, "a head without labels has no metrics"
        return self.gt

    @property
    def sets(self) -> Array:
        """The classes (n, C) bool whose score is above .5, where all scores are kept."""
        assert self.scores is not None, "sets of labels need all scores"
        above: Array = self.scores > 0.5
        return above

    @property
    def correct(self) -> Array:
        """Whether the label, or the whole set of labels, of each image (n,) is predicted; never by scores that are not finite."""
        if self.labels.ndim == 1:
            same: Array = self.preds == self.labels
            return same
        whole: Array = (self.sets == self.labels).all(axis=1) & (self.preds != UNREADABLE)
        return whole

    def of_classes(self, wanted: Sequence[int]) -> HeadPredictions:
        """Select the images whose label is in ``wanted``; of sets of labels all images, with the columns of these classes alone."""
        if self.labels.ndim == 2:
            assert self.scores is not None
            chosen = list(wanted)
            return replace(self, classes=len(chosen), gt=self.labels[:, chosen], scores=self.scores[:, chosen])
        kept = np.isin(self.labels, wanted)
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        return replace(self, **{name: values[kept] for name, values in arrays.items() if values is not None})


@dataclass(frozen=True)
class Predictions:
    """Predictions of all heads, by rising ``index`` (n,), each image once."""

    index: Array
    filename: Sequence[str]
    heads: list[HeadPredictions]

    def __len__(self) -> int:
        return len(self.filename)


class _Chosen(Sequence[str]):
    """Names chosen from more by position, read one at a time."""

    def __init__(self, names: Sequence[str], positions: Ints) -> None:
        self._names, self._positions = names, positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return _Chosen(self._names, self._positions[index])
        return self._names[int(self._positions[index])]


class Recorder:
    """Collects predictions batch by batch, about 60 bytes an image.

    The arrays stay on the device for ``_BLOCK`` images, so that nothing waits. ``depth`` is the number of classes kept for each
    image; ``keep_scores`` keeps all scores, in a temporary file where they are many. ``listed``: the names of the data set by
    index, which are not kept as long as those of the batches are the same.
    """

    def __init__(self, *, depth: int, keep_scores: bool, multilabel: bool, listed: Sequence[str] | None = None) -> None:
        self.depth = depth
        self.keep_scores = keep_scores or multilabel
        self.multilabel = multilabel
        self._listed = listed
        self._classes: list[int] = []
        self._waiting: dict[str, list[Tensor]] = {}
        self._waiting_names: list[str] = []
        self._columns: dict[str, list[Array]] = {}
        self._scores: dict[str, RowFile] = {}
        self._names: list[PackedStrings] | None = [] if listed is None else None

    @torch.no_grad()
    def add(self, scores: Tensor | Sequence[Tensor], batch: Kwargs, losses: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """Collect ``scores`` (B, C), or a list of such, of a ``batch`` with ``filename``, ``index`` and, when known, ``gt``.

        ``losses``: for each head the shares (B,) of the images in the loss, and their weights (B,).
        """
        heads = heads_of(scores)
        labels = self._labels_of(batch.get("gt"), heads)
        self._classes = [head.shape[1] for head in heads]
        self._waiting_names.extend(batch["filename"])
        self._append("index", torch.as_tensor(batch["index"]))
        for number, (head, gt) in enumerate(zip(heads, labels, strict=True)):
            self._add_head(number, head.float(), gt)
        for number, (shares, weights) in enumerate(losses):
            self._append(f"loss{number}", shares.float())
            self._append(f"loss_weight{number}", weights.float())
        if len(self._waiting_names) >= _BLOCK:
            self._pack()

    def state(self) -> Record:
        """Return the arrays as plain numpy, lists and ints, to be sent to another rank; the recorder shares them.

        ``names`` and ``name_ends``, UTF-8 and offsets, are absent where ``listed`` has the names.
        """
        self._pack()
        self._columns = {name: [joined(blocks)] for name, blocks in self._columns.items()}
        state = {"classes": list(self._classes), **{name: whole for name, (whole,) in self._columns.items()}}
        state.update((name, rows.array()) for name, rows in self._scores.items())
        if self._names:
            self._names = [PackedStrings.join(self._names)]
            state["names"], state["name_ends"] = self._names[0].arrays
        return state

    def _pack(self) -> None:
        """Move the tensors and names that wait into arrays; waits for the device."""
        if not self._waiting:
            return
        for name, parts in self._waiting.items():
            self._columns.setdefault(name, []).append(torch.cat(parts).cpu().numpy())
        *earlier, latest = self._columns["index"]
        if self._names is None and not self._are_listed(latest):
            self._names = [PackedStrings(self._names_at(index)) for index in earlier]
        if self._names is not None:
            self._names.append(PackedStrings(self._waiting_names))
        self._waiting, self._waiting_names = {}, []

    def _are_listed(self, index: Ints) -> bool:
        """Check whether the names that wait are those of the data set."""
        assert self._listed is not None
        is_inside = ((index >= 0) & (index < len(self._listed))).all()
        return bool(is_inside) and all(map(str.__eq__, self._names_at(index), self._waiting_names))

    def _names_at(self, index: Ints) -> Iterator[str]:
        assert self._listed is not None
        return (self._listed[each] for each in index.tolist())

    def _add_head(self, number: int, scores: Tensor, gt: Tensor | None) -> None:
        order = scores.sort(dim=1, descending=True, stable=True)
        readable = scores.isfinite().all(dim=1)
        depth = min(self.depth, scores.shape[1])
        self._append(f"topk_idx{number}", order.indices[:, :depth].int().where(readable[:, None], UNREADABLE))
        self._append(f"topk_score{number}", order.values[:, :depth].where(readable[:, None], 0.0))
        if self.keep_scores:
            kept = self._scores.setdefault(f"scores{number}", RowFile())
            kept.append(scores.where(readable[:, None], 0.0).cpu().numpy())
        if gt is None:
            return
        gt = gt.to(scores.device)
        self._append(f"gt{number}", gt > 0.5 if self.multilabel else gt.int())
        if not self.multilabel:
            self._append(f"rank{number}", rank_of(scores, gt.long()).where(readable, scores.shape[1]).int())

    def _append(self, name: str, values: Tensor) -> None:
        self._waiting.setdefault(name, []).append(values)

    def _labels_of(self, gt: Tensor | None, heads: Sequence[Tensor]) -> Sequence[Tensor | None]:
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
        columns = label_columns(gt, len(heads))
        if columns[0].ndim != 1:
            raise UserError(
                f"the labels of a batch have the shape {tuple(gt.shape)}, but the net has 1 head. Expected one label for every "
                "image, or multilabel: true on the evaluator for sets of labels."
            )
        return columns


def rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Count the classes before the label (B,): those of a higher score, and lower classes of equal score."""
    true = scores.gather(1, labels[:, None])
    lower_class = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > true) | ((scores == true) & lower_class)).sum(dim=1)


def combine(states: Sequence[Kwargs], listed: Sequence[str] | None = None) -> Predictions:
    """Join the states of all ranks: sorted by index, each image once even if several ranks sent it.

    ``listed`` as for ``Recorder``.
    """
    filled = [state for state in states if len(state.get("index", ()))]
    if not filled:
        return Predictions(np.zeros(0, dtype=np.int64), [], [])
    names = [name for name in filled[0] if name not in {"classes", "names", "name_ends"}]
    assert all(set(names) <= set(state) and state["classes"] == filled[0]["classes"] for state in filled)
    index = joined([state["index"] for state in filled])
    places: Ints | slice = slice(None)  # of one rank that took the images in their order, the arrays as they are
    if (np.diff(index) <= 0).any():  # np.unique gives the first place of each index, in rising order of the index
        places = np.unique(index, return_index=True)[1]
    parts = {name: [state[name] for state in filled] for name in names}
    columns = {name: rows_at(of, places) if name.startswith("scores") else joined(of)[places] for name, of in parts.items()}
    if any("names" in state for state in filled):
        filenames = _Chosen(PackedStrings.join([_names_of(state, listed) for state in filled]), np.arange(len(index))[places])
    else:
        assert listed is not None
        filenames = _Chosen(listed, columns["index"])
    heads = [
        HeadPredictions(width, **{name: columns.get(f"{name}{number}") for name in _COLUMNS})  # type: ignore[arg-type]
        for number, width in enumerate(filled[0]["classes"])
    ]
    return Predictions(columns["index"], filenames, heads)


def _names_of(state: Kwargs, listed: Sequence[str] | None) -> PackedStrings:
    if "names" in state:
        return PackedStrings.of_arrays(state["names"], state["name_ends"])
    assert listed is not None
    return PackedStrings(listed[each] for each in state["index"].tolist())
