"""Convolutions that oneDNN, the library behind torch on CPUs, computes wrongly."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from torch import nn


def keep_narrow_shortcuts_contiguous(net: nn.Module) -> None:
    """Keep weights and images of strided 1x1 convolutions over few channels contiguous, whatever the format of the net.

    oneDNN's gradient of their weights (torch 2.14, AVX-512) writes beyond its buffer where channels-last images have fewer than 16
    channels and 64 or more pixels a side: the heap is corrupted, and the run crashes at some later moment.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 16:
            weight = dict(module.named_parameters(recurse=False))["weight"]  # LoRA's `weight` attribute is a sum
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous)


def _contiguous(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0].contiguous(),)


def compute_in_float32_where_bf16_is_wrong(net: nn.Module) -> None:
    """Let convolutions compute in float32, under autocast, where oneDNN is wrong in bfloat16 (torch 2.14, AMX).

    - Strided kernels on maps that give one column of outputs, or are narrower than the stride: nothing writes some elements of the
      weights' gradient, and where there are several rows some of the output: often NaN.
    - Kernels on fewer than 32 channels a group whose rows of weights, channels times width, are 64, 96, 128 … long, such as
      patches of 16 x 16 pixels with 4 channels: outputs are wrong altogether.

    Found by comparing 100,000 shapes with float64, in memory filled with a pattern; of 40,000 in float32 none was wrong. Shapes of
    no known network, such as 6 x 6 kernels with a stride of 7, were left out: oneDNN may even write beyond its buffers there.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and (module.stride[1] > 1 or _has_wrong_rows(module)):
            module.forward = MethodType(_exact, module)  # type: ignore[method-assign]  # a deep copy binds its own


def _exact(conv: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    forward: Callable[[nn.Conv2d, torch.Tensor], torch.Tensor] = type(conv).forward
    if not (_has_wrong_rows(conv) or _is_one_column(conv, images.shape[-1])):
        return forward(conv, images)
    with torch.autocast("cpu", enabled=False):
        return forward(conv, images.float())


def _has_wrong_rows(conv: nn.Conv2d) -> bool:
    channels = conv.in_channels // conv.groups
    return channels < 32 and any(channels * size > 32 and channels * size % 32 == 0 for size in conv.kernel_size)


def _is_one_column(conv: nn.Conv2d, width: int) -> bool:
    """Whether a strided convolution has one column of outputs, or an input that is narrower than its stride."""
    stride, padding = conv.stride[1], 0 if isinstance(conv.padding, str) else conv.padding[1]  # "same" has no stride
    return stride > 1 and min(width, width + 2 * padding - conv.dilation[1] * (conv.kernel_size[1] - 1) - 1) < stride
