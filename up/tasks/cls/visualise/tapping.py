"""What the layers of a net give, read and replaced from outside, without a trace in the net."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from up.errors import UserError
from up.text import count

_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode while the block runs; modes and random numbers are then as if it had not run."""
    with ExitStack() as after, torch.random.fork_rng(devices=_gpus(model)):
        after.callback(random.setstate, random.getstate())
        after.callback(np.random.set_state, np.random.get_state())
        for module in model.modules():
            after.callback(setattr, module, "training", module.training)
            module.training = False  # not eval(): what a module does besides would not be taken back
            # Recomputed activations would not be those that a tap has seen.
            if isinstance(getattr(module, "grad_checkpointing", None), bool):
                after.callback(setattr, module, "grad_checkpointing", module.grad_checkpointing)
                module.grad_checkpointing = False  # type: ignore[assignment]
        yield


def _gpus(model: nn.Module) -> list[int]:
    return sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})


@contextmanager
def tapped(model: nn.Module, layers: Sequence[str], tap: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, ``tap(layer, output)`` takes the place of what each layer gives.

    Of several outputs it is the last, and of a backbone's record the last of ``features``.
    """
    with ExitStack() as after:
        for layer in layers:

            def put(module: nn.Module, args: Any, output: Any, layer: str = layer) -> Any:
                return _with_last(output, partial(tap, layer))

            after.callback(model.get_submodule(layer).register_forward_hook(put).remove)
        yield


def _with_last(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return change(output) if output.is_floating_point() else output
    if isinstance(output, Mapping) and "features" in output:
        return {**output, "features": _with_last(output["features"], change)}
    if isinstance(output, (list, tuple)) and output and isinstance(output[-1], Tensor):
        changed = [*output[:-1], _with_last(output[-1], change)]
        return changed if isinstance(output, list) else tuple(changed)
    return output


def as_maps(output: Tensor, image: Tensor, layer: str, model: nn.Module) -> Tensor:
    """What a layer made of ``image`` (B, 3, H, W) as maps (B, C, h, w).

    ``output`` is (B, C, h, w), (B, h, w, C), told by which of them has the image's aspect, or tokens (B, N, C), less
    those that stand for no place.
    Raises ``UserError`` when it has no places, or a single one.
    """
    maps = None
    if len(output) == len(image) and output.ndim == 4:
        maps = output.permute(0, 3, 1, 2) if _is_channels_last(output, image) else output
    elif len(output) == len(image) and output.ndim == 3:
        maps = _grid(output, image, _prefix_tokens(model, layer))
    if maps is None or maps.shape[2] * maps.shape[3] == 1:
        raise UserError(
            f"layer {layer!r} gives {tuple(output.shape)} for {count(len(image), 'image')} of {tuple(image.shape[2:])} "
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
    """How many tokens of a layer stand for no place, where the network around it says so."""
    path = layer
    while path:
        number = getattr(model.get_submodule(path), "num_prefix_tokens", None)
        if isinstance(number, int):
            return number
        path = path.rpartition(".")[0]
    return None
