"""A teacher: a frozen net that is run beside the student and read at its taps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from up.distill.taps import Taps, parse
from up.errors import UserError
from up.models.net import Net
from up.models.norm import is_batch_norm
from up.text import count, some_of

Names = Sequence[str]


@runtime_checkable
class Taught(Protocol):
    """What gives a teacher's side of the terms: the teacher itself, or a cache of what it said."""

    name: str

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]: ...

    def digest(self) -> str:
        """What tells teachers of different weights apart."""


class Teacher:
    """Gives what the ``layers`` of ``net`` give for a batch, as constants of the student's graph.

    ``example`` is any batch that the net can take; it shows the shapes. ``batch_statistics`` lets BatchNorm normalise by
    the batch, its stored statistics stay all the same. ``columns`` are the teacher's classes in the order of the student's.
    The net is frozen, in evaluation mode, and ends after the last layer that is asked for. Raises ``UserError`` for a
    layer that gives nothing.
    """

    def __init__(
        self,
        name: str,
        net: Net,
        layers: Sequence[str],
        *,
        example: Mapping[str, Any],
        batch_statistics: bool = False,
        columns: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self._digest: str | None = None
        self.net = frozen(net)
        self._columns = None if columns is None else torch.tensor(columns)
        taps = Taps(net, layers)
        before = example["image"]._version
        findings = taps.examine(lambda: net(unlabelled(example)), owner=name)
        taps.remove()
        self._spoils_image = example["image"]._version != before
        self._scores = findings.scores if columns is not None else frozenset()
        self._taps = Taps(net, layers, copied=findings.overwritten)
        self._body = net.without(*_after_last(net, layers))
        if batch_statistics:
            normalise_by_batch(net)  # last: a net that is put together anew lets frozen norms rest
        self.class_scores, self.is_reordered = findings.scores, columns is not None
        self.shapes = {
            layer: (shape[0], len(columns)) if columns is not None and layer in self._scores else shape
            for layer, shape in findings.shapes.items()
        }

    def to(self, device: torch.device, *, channels_last: bool = False, compiled: bool = False) -> Teacher:
        """Move to where the student is."""
        self.net.to(device)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        if compiled:
            self._body.compile()
        if self._columns is not None:
            self._columns = self._columns.to(device)
        return self

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with torch.inference_mode(), self._taps.recording() as seen:
            unseen = unlabelled(batch)
            self._body({**unseen, "image": batch["image"].clone()} if self._spoils_image else unseen)
        # The graph of the student cannot save tensors of inference mode; a copy of the few that are tapped costs nothing.
        return {layer: self._in_order(layer, tensor) for layer, tensor in seen.items()}

    def logits(self, batch: Mapping[str, Any]) -> Any:
        """The teacher's answer in the student's classes, or None where its record has no logits."""
        with torch.inference_mode():
            logits = self.net(unlabelled(batch)).get("logits")
            return logits[:, self._columns] if self._columns is not None and isinstance(logits, Tensor) else logits

    def digest(self) -> str:
        """SHA-256 of the weights, or of the graph, and of the order of classes; they never change, so that once is enough."""
        if self._digest is None:
            self._digest = self._computed_digest()
        return self._digest

    def _computed_digest(self) -> str:
        found = hashlib.sha256(repr(None if self._columns is None else self._columns.tolist()).encode())
        for module in self.net.modules():
            found.update(getattr(module, "content_sha256", "").encode())
        for name, tensor in self.net.state_dict().items():
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def _in_order(self, layer: str, tensor: Tensor) -> Tensor:
        return tensor[:, self._columns] if self._columns is not None and layer in self._scores else tensor.clone()


def unlabelled(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without its labels, which a teacher may not have the classes of: it is asked for no loss."""
    return {name: value for name, value in batch.items() if name != "gt"}


def frozen(net: Net) -> Net:
    """The net without gradients and in evaluation mode."""
    net.requires_grad_(False)
    return net.eval()


def normalise_by_batch(net: Net) -> None:
    """Let every BatchNorm go by the statistics of the batch; what it has stored stays what was trained."""
    for module in net.modules():
        if is_batch_norm(module):
            module.train()
            module.momentum = 0.0  # type: ignore[assignment]


def columns_for(teacher: str, ours: Names | None, theirs: Names | None) -> list[int] | None:
    """The teacher's classes in the order of the student's, by their names; None where nothing need be moved.

    Raises ``UserError`` when the teacher lacks a class of the student. Without names on both sides the numbers must do.
    """
    if ours is None or theirs is None or list(ours) == list(theirs):
        return None
    if not all(isinstance(name, str) for name in (*ours, *theirs)):
        raise UserError(f"{teacher}: its classes are not those of the student, which has several heads. Expected the same.")
    missing = [name for name in ours if name not in theirs]
    if missing:
        raise UserError(
            f"{teacher}: does not know {count(len(missing), 'class')} of the student's {len(ours)}: {some_of(missing, 5)}. "
            f"It was trained on {len(theirs)} ({some_of(theirs, 5)}). Expected a teacher of the same classes."
        )
    return [list(theirs).index(name) for name in ours]


def _after_last(net: Net, layers: Sequence[str]) -> list[str]:
    """The modules of the net that run after the last one with a tap."""
    tapped = {parse(layer)[0].partition(".")[0] for layer in layers}
    last = max(index for index, name in enumerate(net.module_names) if name in tapped)
    return list(net.module_names[last + 1 :])
