"""The net on its device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from up.build.network import keep_narrow_shortcuts_contiguous


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
