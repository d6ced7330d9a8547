"""Convolutions that oneDNN gets wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from up.models.onednn import compute_in_float32_where_bf16_is_wrong, keep_narrow_shortcuts_contiguous


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


SHAPES = {  # in channels, kernel, stride, padding, height, width; whether oneDNN is wrong in bfloat16 there
    "3x3 on one pixel": (16, 3, 2, 1, 1, 1, True),
    "7x7 on one pixel": (16, 7, 2, 3, 1, 1, True),
    "below the stride": (16, 3, 3, 1, 2, 2, True),
    "even kernel": (16, 2, 4, 1, 3, 3, True),
    "a column": (5, 3, 2, 1, 11, 2, True),
    "patches of 4 channels": (4, 16, 16, 0, 64, 64, True),
    "4x4 on 16 channels": (16, 4, 4, 0, 16, 16, True),
    "two columns": (16, 3, 2, 1, 4, 3, False),
    "patches of 3 channels": (3, 16, 16, 0, 64, 64, False),
    "no stride": (16, 3, 1, 1, 1, 1, False),
    "one pixel": (16, 1, 2, 0, 1, 1, False),
}


@pytest.mark.parametrize(("channels", "kernel", "stride", "padding", "height", "width", "wrong"), SHAPES.values(), ids=SHAPES)
def test_convolutions_that_are_wrong_in_bfloat16(
    channels: int, kernel: int, stride: int, padding: int, height: int, width: int, wrong: bool
) -> None:
    """Outputs that have nothing to do with the input, and elements that nothing wrote: here NaN, which the memory had before."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 32, kernel, stride=stride, padding=padding, bias=False)
    plain, images = copy.deepcopy(conv), torch.randn(6, channels, height, width)
    net = nn.Sequential(conv)
    compute_in_float32_where_bf16_is_wrong(net)
    net = copy.deepcopy(net)  # as an average of weights is one
    expected = plain(images)
    expected.square().sum().backward()
    for _ in range(3):
        net.zero_grad()
        stale = [torch.full((conv.weight.numel() // part,), torch.nan) for part in (1, 2, 4) for _ in range(3)]
        del stale
        with torch.autocast("cpu", torch.bfloat16):
            out = net(images)
        out.float().square().sum().backward()
        assert (out.dtype == torch.float32) == wrong
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
        torch.testing.assert_close(net[0].weight.grad, plain.weight.grad, rtol=0.05, atol=0.5)
    assert conv.weight.grad is None  # the copy has weights of its own
