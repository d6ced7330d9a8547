"""Feature hooks: read what the modules of a net take and return while it runs, without changing the net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from up.errors import UserError
from up.models.paths import unknown_layer

Activations = Mapping[str, Tensor]  # by layer
Shapes = Mapping[str, tuple[int, ...]]  # by layer, batch first


@dataclass(frozen=True)
class Inspection:
    """What one forward pass shows of the hooked layers of a net."""

    shapes: Shapes
    overwritten: frozenset[str]  # layers whose tensor a later layer changes in place
    logits: frozenset[str]  # layers whose tensor is the record's ``logits``: one score for each class
    constant: frozenset[str]  # layers that no gradient passes through, if gradients were asked for


def split_layer(layer: str) -> tuple[str, str]:
    """``head.classifier:input`` as the path of a module and a side of it; the side is ``output`` when none is named."""
    path, colon, side = layer.rpartition(":")
    return (path, side) if colon else (layer, "output")


def layer_problem(net: nn.Module, layer: str, *, owner: str) -> str | None:
    """What is wrong with the name of a layer; None if the net has it."""
    path, side = split_layer(layer)
    if side not in ("input", "output"):
        return f"got {layer!r}, expected the path of a module, or PATH:input for what the module takes."
    return unknown_layer(net, path, owner=owner)


class FeatureHooks:
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
        self._handles = [self._register(net, layer) for layer in self.layers]

    def remove(self) -> None:
        """Remove the hooks from the net."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """The activations by layer, filled while the net runs in the block; outside of it nothing is kept."""
        seen: dict[str, Tensor] = {}
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def inspect(self, run: Callable[[], Mapping[str, object]], *, owner: str, gradients: bool = False) -> Inspection:
        """Look at one forward pass, ``run``. Raises ``UserError`` for a layer that does not run in it or returns no tensor.

        It must not be in inference mode, where tensors do not count their changes. ``gradients`` finds layers without.
        """
        versions: dict[str, int] = {}
        self._versions = versions
        try:
            with torch.set_grad_enabled(gradients), self.recording() as seen:
                logits = run().get("logits")
        finally:
            self._versions = None
        for layer in self.layers:
            if layer not in seen:
                raise UserError(f"{owner}: layer {layer!r} returns no tensor, or does not run in evaluation. Name another.")
        return Inspection(
            shapes={layer: tuple(tensor.shape) for layer, tensor in seen.items()},
            overwritten=frozenset(layer for layer, tensor in seen.items() if tensor._version != versions[layer]),
            logits=frozenset(layer for layer, tensor in seen.items() if tensor is logits),
            constant=frozenset(layer for layer, tensor in seen.items() if gradients and not tensor.requires_grad),
        )

    def _register(self, net: nn.Module, layer: str) -> RemovableHandle:
        path, side = split_layer(layer)
        module = net.get_submodule(path)
        if side == "output":
            return module.register_forward_hook(lambda _, args, output: self._keep(layer, output))
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: self._keep(layer, args[0] if args else next(iter(kwargs.values()), None)), with_kwargs=True
        )

    def _keep(self, layer: str, value: object) -> None:
        tensor = tensor_in(value) if self._seen is not None else None
        if self._seen is None or tensor is None:
            return
        if self._versions is not None:
            self._versions[layer] = tensor._version
        self._seen[layer] = tensor.clone() if layer in self._copied else tensor


def tensor_in(value: object) -> Tensor | None:
    """The tensor that a module's input or output is, or holds; None if it holds none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        found = (tensor_in(value[name]) for name in ("logits", "features", "image") if name in value)
        return next((tensor for tensor in found if tensor is not None), None)
    return tensor_in(value[-1]) if isinstance(value, list | tuple) and value else None
