"""Feature hooks: read and replace what the layers of a net return, without changing the net."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from up.errors import UserError
from up.text import count

_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode in the block; afterwards modes and random numbers are as they were before."""
    gpus = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    with ExitStack() as after, torch.random.fork_rng(devices=gpus):
        after.callback(random.setstate, random.getstate())
        after.callback(np.random.set_state, np.random.get_state())
        for module in model.modules():
            after.callback(setattr, module, "training", module.training)
            module.training = False  # not eval(): what a module does besides would not be taken back
            # Recomputed activations would not be those that a hook has seen.
            if isinstance(getattr(module, "grad_checkpointing", None), bool):
                after.callback(setattr, module, "grad_checkpointing", module.grad_checkpointing)
                module.grad_checkpointing = False  # type: ignore[assignment]
        yield


@contextmanager
def feature_hooks(model: nn.Module, layers: Sequence[str], replace: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """In the block, ``replace(layer, output)`` replaces what each layer returns.

    Of several outputs it is the last, and of a backbone's record the last of ``features``.
    """
    with ExitStack() as after:
        for layer in layers:

            def hook(module: nn.Module, args: object, output: object, layer: str = layer) -> object:
                return _with_last(output, lambda tensor: replace(layer, tensor))

            after.callback(model.get_submodule(layer).register_forward_hook(hook).remove)
        yield


def _with_last(output: object, change: Callable[[Tensor], Tensor]) -> object:
    if isinstance(output, Tensor):
        return change(output) if output.is_floating_point() else output
    if isinstance(output, Mapping) and "features" in output:
        return {**output, "features": _with_last(output["features"], change)}
    if isinstance(output, list | tuple) and output and isinstance(output[-1], Tensor):
        changed = [*output[:-1], _with_last(output[-1], change)]
        return changed if isinstance(output, list) else tuple(changed)
    return output


def as_maps(output: Tensor, image: Tensor, layer: str, model: nn.Module) -> Tensor:
    """The ``output`` of a layer for ``image`` (B, 3, H, W) as maps (B, C, h, w).

    It is (B, C, h, w) or (B, h, w, C), whichever has the image's aspect, or tokens (B, N, C), of which class and register
    tokens are dropped.
    Raises ``UserError`` if it has no places, or a single one.
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
    """The patch tokens as (B, C, h, w), or None where their number makes no grid of the image's aspect."""
    aspect = image.shape[2] / image.shape[3]
    for leading in range(_MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
        places = max(0, tokens.shape[1] - leading)
        height, width = round(math.sqrt(places * aspect)), round(math.sqrt(places / aspect))
        if places and height * width == places:
            return tokens[:, leading:].reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)
    return None


def _prefix_tokens(model: nn.Module, layer: str) -> int | None:
    """Number of leading tokens of a layer without a place, if the network around it states it."""
    path = layer
    while path:
        number = getattr(model.get_submodule(path), "num_prefix_tokens", None)
        if isinstance(number, int):
            return number
        path = path.rpartition(".")[0]
    return None
