"""Feature hooks: read what the modules of a net take and return while it runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from up.errors import UserError
from up.text import count, did_you_mean
from up.types import Record

Activations = Mapping[str, Tensor]  # by layer
Shapes = Mapping[str, tuple[int, ...]]  # by layer, batch first

_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens


class FeatureHooks:
    """Read tensors at ``layers`` of ``net``: paths of modules, or ``path:input`` for the input of a module.

    ``with FeatureHooks(net, ["backbone.layer4"]) as activations`` hooks the net in the block only; hooks that stay record in
    the blocks of ``recording``. In a record the tensor is the logits, the last feature or the image, whichever comes first;
    of several tensors the last; of a module that runs several times that of the last run.

    - ``copied``: layers to copy as they are read, because a later layer changes them in place.
    - ``versions`` is filled with the version of each tensor as it is read (not in inference mode, which counts none).
    - ``cut`` starts the graph at the layers: what is read is a leaf, and the net continues with a copy of it.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[str],
        *,
        copied: Collection[str] = (),
        versions: dict[str, int] | None = None,
        cut: bool = False,
    ) -> None:
        self._copied = copied
        self._versions = versions
        self._cut = cut
        self._seen: dict[str, Tensor] | None = None
        self._handles = [self._register(net, layer) for layer in dict.fromkeys(layers)]

    def __enter__(self) -> dict[str, Tensor]:
        """Record in the block; the hooks are removed after it."""
        self._seen = {}
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._seen = None
        self.remove()

    def remove(self) -> None:
        """Remove the hooks from the net."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Return the activations by layer, in the order of their last runs, filled while the net runs in the block."""
        seen: dict[str, Tensor] = {}
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def _register(self, net: nn.Module, layer: str) -> RemovableHandle:
        path, side = split_layer(layer)
        module = net.get_submodule(path)
        if side == "output":
            return module.register_forward_hook(lambda _, args, output: self._read(layer, output))

        def read_input(_: nn.Module, args: tuple[object, ...], kwargs: Record) -> None:
            self._read(layer, args[0] if args else next(iter(kwargs.values()), None))

        return module.register_forward_pre_hook(read_input, with_kwargs=True)

    def _read(self, layer: str, value: object) -> object:
        """Record the tensor in ``value``; returns what the module returns instead, if the graph is cut."""
        seen = self._seen
        if seen is None:
            return None

        def keep(tensor: Tensor) -> Tensor:
            seen.pop(layer, None)
            if self._versions is not None:
                self._versions[layer] = tensor._version
            if self._cut:
                seen[layer] = tensor.detach().clone().requires_grad_()
                return seen[layer].clone()  # an in-place activation after the layer may overwrite this one
            seen[layer] = tensor.clone() if layer in self._copied else tensor
            return tensor

        replaced = _mapped(value, keep)
        return replaced if self._cut else None


def _mapped(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """Copy the input or output of a module with the tensor that hooks read changed; ``value`` itself if it has none."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        name = next((name for name in ("logits", "features", "image") if value.get(name) is not None), None)
        return value if name is None else {**value, name: _mapped(value[name], change)}
    if isinstance(value, list | tuple) and value:
        changed = [*value[:-1], _mapped(value[-1], change)]
        return changed if isinstance(value, list) else tuple(changed)
    return value


@dataclass(frozen=True)
class Inspection:
    """Facts about hooked layers of a net from one forward pass."""

    shapes: Shapes
    overwritten: frozenset[str]  # layers whose tensor a later layer changes in place
    logits: frozenset[str]  # layers whose tensor is the record's ``logits``: one score for each class
    constant: frozenset[str]  # layers that no gradient passes through, if gradients were asked for


def inspect_layers(net: nn.Module, layers: Sequence[str], batch: Record, *, owner: str, gradients: bool = False) -> Inspection:
    """Run ``batch`` through the net and inspect the layers; ``gradients`` finds those without.

    Not for inference mode. Raises ``UserError`` for a layer of the ``owner`` that does not run or returns no tensor.
    """
    versions: dict[str, int] = {}
    with torch.set_grad_enabled(gradients), FeatureHooks(net, layers, versions=versions) as seen:
        logits = net(batch).get("logits")
    for layer in layers:
        if layer not in seen:
            raise UserError(f"{owner}: layer {layer!r} returns no tensor, or does not run in evaluation. Name another.")
    return Inspection(
        shapes={layer: tuple(tensor.shape) for layer, tensor in seen.items()},
        overwritten=frozenset(layer for layer, tensor in seen.items() if tensor._version != versions[layer]),
        logits=frozenset(layer for layer, tensor in seen.items() if tensor is logits),
        constant=frozenset(layer for layer, tensor in seen.items() if gradients and not tensor.requires_grad),
    )


def split_layer(layer: str) -> tuple[str, str]:
    """Split ``head.classifier:input`` into the path of a module and ``input`` or ``output``, the default."""
    path, colon, side = layer.rpartition(":")
    return (path, side) if colon else (layer, "output")


def layer_problem(net: nn.Module, layer: str, *, owner: str = "the net") -> str | None:
    """Say why hooks cannot read ``layer`` of the ``owner``, with near names; None if they can."""
    path, side = split_layer(layer)
    if side not in ("input", "output"):
        return f"got {layer!r}, expected the path of a module, or PATH:input for its input."
    known = [name for name, _ in net.named_modules() if name]
    if path in known:
        return None
    tops = ", ".join(name for name, _ in net.named_children())
    near = did_you_mean(path, known) or f" Expected a path that begins with {tops}."
    return f"{owner} has no layer {path!r}.{near}"


def require_layers(net: nn.Module, layers: Sequence[str], *, hook: str) -> None:
    """Raise ``UserError`` with near names if the net lacks one of the layers, or if there are none."""
    if not layers:
        first = next(name for name, _ in net.named_modules() if name)
        raise UserError(f"{hook}: no layer is named. Expected the path of a module, such as {first!r}.")
    for problem in (layer_problem(net, layer) for layer in layers):
        if problem is not None:
            raise UserError(f"{hook}: {problem}")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode in the block; restore modes and random numbers after it."""
    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    # compiled code neither sees hooks that are added later nor turns off the recomputation of activations
    with ExitStack() as after, torch.random.fork_rng(devices=gpus), torch.compiler.set_stance("force_eager"):
        after.callback(random.setstate, random.getstate())
        after.callback(np.random.set_state, np.random.get_state())
        for module in model.modules():
            after.callback(setattr, module, "training", module.training)
            module.training = False  # not eval(), whose side effects could not be undone
            # Recomputed activations would not be those that a hook has read.
            if isinstance(getattr(module, "grad_checkpointing", None), bool):
                after.callback(setattr, module, "grad_checkpointing", module.grad_checkpointing)
                module.grad_checkpointing = False  # type: ignore[assignment]
        yield


def as_maps(output: Tensor, image: Tensor, layer: str, model: nn.Module) -> Tensor:
    """Convert the ``output`` of a layer for ``image`` (B, 3, H, W) to maps (B, C, h, w).

    It is (B, C, h, w) or (B, h, w, C), whichever has the image's aspect, or tokens (B, N, C), of which class and register
    tokens are dropped. Raises ``UserError`` if it has fewer than two places.
    """
    maps = None
    if len(output) == len(image) and output.ndim == 4:
        maps = output.permute(0, 3, 1, 2) if _is_channels_last(output, image) else output
    elif len(output) == len(image) and output.ndim == 3:
        maps = _grid(output, image, _prefix_tokens(model, layer))
    if maps is None or maps.shape[2] * maps.shape[3] == 1:
        raise UserError(
            f"layer {layer!r} returns {tuple(output.shape)} for {count(len(image), 'image')} of {tuple(image.shape[2:])} "
            "pixels. Expected maps (B, C, H, W) or tokens (B, N, C) of several places: name an earlier layer."
        )
    return maps.float()


def _is_channels_last(output: Tensor, image: Tensor) -> bool:
    def distortion(height: int, width: int) -> float:
        return abs(math.log(height / width * image.shape[3] / image.shape[2]))

    _, first, second, third = output.shape
    return distortion(first, second) < distortion(second, third)


def _grid(tokens: Tensor, image: Tensor, prefix: int | None) -> Tensor | None:
    """Arrange the patch tokens as (B, C, h, w); None if their number makes no grid of the image's aspect."""
    aspect = image.shape[2] / image.shape[3]
    for leading in range(_MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
        places = max(0, tokens.shape[1] - leading)
        height, width = round(math.sqrt(places * aspect)), round(math.sqrt(places / aspect))
        if places and height * width == places:
            return tokens[:, leading:].reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)
    return None


def _prefix_tokens(model: nn.Module, layer: str) -> int | None:
    """Read the number of leading tokens without a place from the network around a layer, if it states one."""
    path = layer
    while path:
        number = getattr(model.get_submodule(path), "num_prefix_tokens", None)
        if isinstance(number, int):
            return number
        path = path.rpartition(".")[0]
    return None
