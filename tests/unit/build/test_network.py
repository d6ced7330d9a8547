"""The net on its device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from up.build.network import keep_narrow_shortcuts_contiguous, pad_maps_below_stride


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "kept"), [(15, 1, 2, True), (16, 1, 2, False), (8, 1, 1, False), (8, 3, 2, False)]
)
def test_narrow_shortcuts_read_contiguous_images(channels: int, kernel: int, stride: int, kept: bool) -> None:
    """Fewer than 16 channels, one pixel, a stride: the gradient of these weights writes beyond its buffer in channels-last."""
    seen: list[Tensor] = []
    conv = nn.Conv2d(channels, 16, kernel, stride=stride, padding=kernel // 2, bias=False)
    plain = copy.deepcopy(conv)
    net = nn.Sequential(conv).to(memory_format=torch.channels_last)
    keep_narrow_shortcuts_contiguous(net)
    conv.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.rand(2, channels, 6, 6)
    out = net(images.to(memory_format=torch.channels_last))
    assert seen[0].is_contiguous() == kept
    assert (conv.weight.stride() == plain.weight.stride()) == kept
    torch.testing.assert_close(out, plain(images))
    assert set(net.state_dict()) == {"0.weight"}


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "read"),
    [(1, 3, 2, 1, 2), (1, 7, 2, 3, 2), (2, 3, 3, 1, 3), (2, 3, 2, 1, 2), (1, 3, 1, 1, 1), (1, 1, 2, 0, 1)],
)
def test_gradients_of_weights_on_maps_below_the_stride(side: int, kernel: int, stride: int, padding: int, read: int) -> None:
    """In bfloat16 these had elements that nothing wrote: here NaN, which the memory had before."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, kernel, stride=stride, padding=padding, bias=False)
    plain, sides, images = copy.deepcopy(conv), list[int](), torch.randn(6, 16, side, side)
    pad_maps_below_stride(nn.Sequential(conv))
    conv.register_forward_hook(lambda module, inputs, output: sides.append(inputs[0].shape[-1]))
    plain(images).square().sum().backward()
    for _ in range(3):
        conv.zero_grad()
        stale = [torch.full((conv.weight.numel() // part,), torch.nan) for part in (1, 2, 4) for _ in range(3)]
        del stale
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(images)
        out.float().square().sum().backward()
        torch.testing.assert_close(conv.weight.grad, plain.weight.grad, rtol=0.05, atol=0.3)
    assert set(sides) == {read}
