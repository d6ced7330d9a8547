"""What the layers of a net give or take, read while it runs, without a trace in the net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from up.errors import UserError
from up.models.paths import unknown_layer

_SIDES = ("input", "output")


@dataclass(frozen=True)
class Findings:
    """What one forward pass shows of the taps of a net."""

    shapes: Mapping[str, tuple[int, ...]]  # by layer, batch first
    overwritten: frozenset[str] = frozenset()  # layers whose tensor a later layer changes in place
    scores: frozenset[str] = frozenset()  # layers whose tensor is the record's ``logits``: one score for each class
    constant: frozenset[str] = frozenset()  # layers that no gradient passes through, where gradients were asked for


def parse(layer: str) -> tuple[str, str]:
    """``head.classifier:input`` as the path of a module and a side of it; the side is ``output`` when none is named."""
    path, colon, side = layer.rpartition(":")
    return (path, side) if colon else (layer, "output")


def tap_problem(net: nn.Module, layer: str, *, owner: str) -> str | None:
    """What is wrong with the name of a tap; None when there is such a layer."""
    path, side = parse(layer)
    if side not in _SIDES:
        return f"got {layer!r}, expected the path of a module, or PATH:input for what the module takes."
    return unknown_layer(net, path, owner=owner)


class Taps:
    """Reads tensors at ``layers`` of ``net``: paths of modules, or ``path:input`` for what a module takes.

    Of a record it is the logits, the last feature or the image, whichever comes first; of several tensors the last; of a
    module that runs several times the last run. A layer in ``copied`` is copied as it is read, since a later layer
    changes it in place.
    """

    def __init__(self, net: nn.Module, layers: Sequence[str], *, copied: frozenset[str] = frozenset()) -> None:
        self.layers = tuple(dict.fromkeys(layers))
        self._copied = copied
        self._seen: dict[str, Tensor] | None = None
        self._versions: dict[str, int] | None = None
        self._handles = [self._install(net, layer) for layer in self.layers]

    def remove(self) -> None:
        """Leave the net as it was."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """The tensors by layer, filled while the net runs in the block; outside of such a block nothing is kept."""
        seen: dict[str, Tensor] = {}
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def examine(self, run: Callable[[], Any], *, owner: str, gradients: bool = False) -> Findings:
        """One forward pass, ``run``, looked at. Raises ``UserError`` for a layer that does not run in it or gives no tensor.

        It must not be in inference mode, where tensors do not count their changes. ``gradients`` looks for layers without.
        """
        versions: dict[str, int] = {}
        self._versions = versions
        try:
            with torch.set_grad_enabled(gradients), self.recording() as seen:
                record = run()
        finally:
            self._versions = None
        for layer in self.layers:
            if layer not in seen:
                raise UserError(f"{owner}: layer {layer!r} gives no tensor, or does not run in evaluation. Name another.")
        logits = record.get("logits") if isinstance(record, Mapping) else None
        return Findings(
            shapes={layer: tuple(tensor.shape) for layer, tensor in seen.items()},
            overwritten=frozenset(layer for layer, tensor in seen.items() if tensor._version != versions[layer]),
            scores=frozenset(layer for layer, tensor in seen.items() if tensor is logits),
            constant=frozenset(layer for layer, tensor in seen.items() if gradients and not tensor.requires_grad),
        )

    def _install(self, net: nn.Module, layer: str) -> Any:
        path, side = parse(layer)
        module = net.get_submodule(path)
        if side == "input":

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._keep(layer, args[0] if args else next(iter(kwargs.values()), None))

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(layer, output)

        return module.register_forward_hook(after)

    def _keep(self, layer: str, value: Any) -> None:
        if self._seen is None:
            return
        tensor = tensor_in(value)
        if tensor is None:
            return
        if self._versions is not None:
            self._versions[layer] = tensor._version
        self._seen[layer] = tensor.clone() if layer in self._copied else tensor


def tensor_in(value: Any) -> Tensor | None:
    """The tensor that a module's input or output is, or holds; None where it holds none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        found = (tensor_in(value[name]) for name in ("logits", "features", "image") if name in value)
        return next((tensor for tensor in found if tensor is not None), None)
    if isinstance(value, (list, tuple)) and value:
        return tensor_in(value[-1])
    return None
