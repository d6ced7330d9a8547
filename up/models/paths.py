"""Modules of a network by their paths, such as ``backbone.layer4.1``; a wrong one is answered with near ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from up.errors import UserError
from up.text import did_you_mean


def unknown_layer(model: nn.Module, layer: str, *, owner: str = "the net") -> str | None:
    """What is wrong with a path at which the network has no module; None when it has."""
    known = [name for name, _ in model.named_modules() if name]
    if layer in known:
        return None
    tops = ", ".join(name for name, _ in model.named_children())
    near = did_you_mean(layer, known) or f" Expected a path that begins with {tops}."
    return f"{owner} has no layer {layer!r}.{near}"


def require_layers(model: nn.Module, layers: Sequence[str], *, hook: str) -> None:
    """Raises ``UserError`` with near names for a path at which the net has no module."""
    if not layers:
        first = next(name for name, _ in model.named_modules() if name)
        raise UserError(f"{hook}: no layer is named. Expected the path of a module, such as {first!r}.")
    for layer in layers:
        problem = unknown_layer(model, layer)
        if problem is not None:
            raise UserError(f"{hook}: {problem}")
