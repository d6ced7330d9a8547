"""Sizes of the paths of a supernet, against networks of the same genotype and against values counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.harness.nets import meta_device
from up.errors import UserError
from up.models.genotype import Genotype
from up.models.supernet import CellSupernet, cell_supernet
from up.supernet import sizes
from up.supernet.sizes import Sizes

IMAGE = (3, 8, 8)
SKIPS = Genotype((("skip_connect", 0), ("skip_connect", 1)), (("skip_connect", 0), ("skip_connect", 1)))
CONVS = Genotype((("sep_conv_3x3", 0), ("skip_connect", 1)), (("skip_connect", 0), ("skip_connect", 1)))


def supernet() -> CellSupernet:
    made = cell_supernet(candidates=["skip_connect", "sep_conv_3x3"], nodes=1, layers=3, init_channels=4)
    assert isinstance(made, CellSupernet)
    return made


def test_macs_are_those_of_the_modules_of_the_path() -> None:
    net = supernet()
    measured = Sizes(net, "macs", IMAGE)
    # the one normal cell, the first, has 4 channels and maps of 8 x 8; a separable convolution is twice 3x3 depthwise and 1x1
    assert measured.of(CONVS) - measured.of(SKIPS) == 2 * (4 * 9 + 4 * 4) * 64
    # stem 3x3 from 3 to 12; normal cell: 12 to 4 twice; then two reductions, from 12 and 4 to 8, and from 4 and 8 to 16,
    # whose skip connections halve both inputs with 1x1 convolutions, as the second reduction does with the input before the first
    stem, normal = 3 * 12 * 9 * 64, 2 * 12 * 4 * 64
    first = (12 * 8 + 4 * 8) * 64 + 2 * 8 * 8 * 16
    second = (4 * 16 + 8 * 16) * 16 + 2 * 16 * 16 * 4
    assert measured.of(SKIPS) == stem + normal + first + second


def test_params_need_no_image() -> None:
    net = supernet()
    assert Sizes(net, "params", (1, 1, 1)).of(CONVS) == net.parameters_of(CONVS)


def test_each_operation_is_timed_once_and_a_table_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1, 1000))

    def timed(module: nn.Module, shape: tuple[int, int, int]) -> float:
        assert next(module.parameters(), torch.zeros(0)).device.type == "cpu"
        return float(next(ticks))

    monkeypatch.setattr(sizes, "milliseconds", timed)
    net = supernet()
    net.train()
    measured = Sizes(net, "latency_ms", IMAGE)
    assert net.training
    once = measured.of(CONVS)
    assert measured.of(CONVS) == once
    resumed = Sizes(net, "latency_ms", IMAGE)
    resumed.latencies = measured.latencies
    assert resumed.of(CONVS) == once
    assert Sizes(net, "macs", IMAGE).latencies == {}


def test_a_convolution_takes_some_time() -> None:
    assert sizes.milliseconds(nn.Conv2d(3, 4, 3), IMAGE) > 0


def test_clocks_of_several_ranks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "world_size", lambda: 2)
    with meta_device():
        net = supernet()
    with pytest.raises(UserError) as caught:
        Sizes(net, "latency_ms", IMAGE)
    assert caught.value.problems[0].key == "size"
    assert "macs" in str(caught.value)
