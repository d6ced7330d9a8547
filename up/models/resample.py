"""Adapt tensors of a file: interpolate values per position to another size, fit the first convolution to other images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from torch import Tensor, nn

_EMBEDDINGS = ("pos_embed", "absolute_pos_embed")
_CLASS_TOKENS = (1, 0, 2)  # ViT has a class token, some have none, distilled DeiT has one more
_CLASS_OFFSETS = (0, 3)  # BEiT: from the class token to tokens, from tokens to it, and from it to itself


def resampled(
    net: nn.Module, name: str, tensor: Tensor, shape: Sequence[int], images: Sequence[int] | None = None
) -> Tensor | None:
    """Interpolate ``tensor`` to ``shape`` if ``name`` is a position embedding of ``net``; None otherwise.

    ``pos_embed`` is (1, tokens, channels); ``relative_position_bias_table`` (offsets, heads), or (heads, height, width) in MaxViT.
    ``images``: (height, width) of the images that the weights are for, by which 16 tokens may be 2 x 8; square where it is unknown.
    """
    owner_name, _, own_name = name.rpartition(".")
    if tensor.ndim != len(shape):
        return None
    if own_name in _EMBEDDINGS and tensor.ndim == 3 and tensor.shape[-1] == shape[-1]:
        return _position_embedding(net.get_submodule(owner_name), tensor, shape[1], images)
    if own_name == "relative_position_bias_table":
        return _relative_bias(net.get_submodule(owner_name), tensor, shape)
    return None


def is_of_another_grid(net: nn.Module, name: str, tensor: Tensor, images: Sequence[int] | None) -> bool:
    """Check whether ``tensor`` is a position embedding of as many patches as that of ``net``, in another grid: 4 x 4, not 2 x 8."""
    owner_name, _, own_name = name.rpartition(".")
    if own_name not in _EMBEDDINGS or tensor.ndim != 3:
        return False
    owner = net.get_submodule(owner_name)
    new, old = _grid_of(owner), _grid_of_images(owner, images)
    same_number = new is not None and old is not None and math.prod(new) == math.prod(old)
    return same_number and new != old and tensor.shape[1] - math.prod(old or ()) in _CLASS_TOKENS


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weight (O, C, h, w) of a first convolution to images of ``channels``.

    For one channel the weights are added: a grey image gives what it gave as RGB. For others they are repeated in turn and
    scaled by C / ``channels``, so that outputs keep their size (as timm's ``adapt_input_conv``).
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    own = weight.shape[1]
    return weight.repeat(1, -(-channels // own), 1, 1)[:, :channels] * (own / channels)


def _position_embedding(owner: nn.Module, tensor: Tensor, tokens: int, images: Sequence[int] | None) -> Tensor | None:
    """Interpolate bicubically over the patch grid and keep class tokens; None if the old grid is unknown and was not square."""
    grid, known = _grid_of(owner), _grid_of_images(owner, images)
    for extra in _CLASS_TOKENS:
        new = grid if grid is not None and math.prod(grid) == tokens - extra else _square(tokens - extra)
        is_known = known is not None and math.prod(known) == tensor.shape[1] - extra
        old = known if is_known else _square(tensor.shape[1] - extra)
        if new is not None and old is not None:
            made = resample_abs_pos_embed(tensor, new_size=list(new), old_size=list(old), num_prefix_tokens=extra)
            return cast("Tensor", made)
    return None


def _grid_of(owner: nn.Module) -> tuple[int, ...] | None:
    grid = getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    return None if grid is None else tuple(grid)


def _grid_of_images(owner: nn.Module, images: Sequence[int] | None) -> tuple[int, ...] | None:
    """The grid of patches that images (height, width) have in a network like this one."""
    patch = getattr(getattr(owner, "patch_embed", None), "patch_size", None)
    if images is None or not isinstance(patch, tuple):
        return None
    return tuple(side // length for side, length in zip(images, patch, strict=True))


def _relative_bias(owner: nn.Module, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
    window = getattr(owner, "window_size", None)
    sides = None if window is None else tuple(2 * side - 1 for side in window)
    if sides is None or tensor.shape[-1 if tensor.ndim == 2 else 0] != shape[-1 if tensor.ndim == 2 else 0]:  # the heads
        return None
    extra = shape[0] - math.prod(sides)
    is_flat = tensor.ndim == 2 and extra in _CLASS_OFFSETS and _square(len(tensor) - extra) is not None
    if not is_flat and tuple(shape[1:]) != sides:
        return None
    return cast("Tensor", resize_rel_pos_bias_table_simple(tensor, new_window_size=window, new_bias_shape=tuple(shape)))


def _square(count: int) -> tuple[int, int] | None:
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None
