"""The net on its device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.harness.tiny import load_record, tiny_config
from up.build.network import to_device
from up.models.net import Net


@pytest.mark.parametrize(("amp", "patched"), [(None, False), ("bf16", True), ("fp16", False)])
def test_only_bf16_on_a_cpu_needs_other_convolutions(amp: str | None, patched: bool, tmp_path: Path) -> None:
    record = dict(tiny_config(tmp_path, tmp_path / "run"))
    record["runtime"] = {**record.get("runtime", {}), "amp": amp}
    experiment = load_record(record, tmp_path / "config.yaml")
    net = Net([("backbone", nn.Conv2d(3, 8, 3, stride=2))])
    to_device(experiment, net, torch.device("cpu"))
    assert ("forward" in vars(net["backbone"])) == patched
