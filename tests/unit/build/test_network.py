"""The net on its device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.harness.facts import tells
from tests.harness.tiny import load_record, tiny_config
from up.build.network import build_net, to_device
from up.errors import ConfigError
from up.models.net import Net
from up.types import Record


@pytest.mark.parametrize(("amp", "patched"), [(None, False), ("bf16", True), ("fp16", False)])
def test_only_bf16_on_a_cpu_needs_other_convolutions(amp: str | None, patched: bool, tmp_path: Path) -> None:
    record = dict(tiny_config(tmp_path, tmp_path / "run"))
    record["runtime"] = {**record.get("runtime", {}), "amp": amp}
    experiment = load_record(record, tmp_path / "config.yaml")
    net = Net([("backbone", nn.Conv2d(3, 8, 3, stride=2))])
    to_device(experiment, net, torch.device("cpu"))
    assert ("forward" in vars(net["backbone"])) == patched


def test_freeze_patterns_that_match_nothing_are_errors_at_their_lines(record: Record, written: Path) -> None:
    """All of them, as they are written: those of a module without its name; ``self`` in both forms."""
    record["net"][0]["freeze_patterns"] = ["layer1", "layr1", "r:bn["]
    record["net"] += [
        {"name": "self", "type": "self", "freeze_patterns": ["backbone", "hed"]},
        {"name": "self", "type": "self", "kwargs": {"freeze_patterns": ["head.clasifier"]}},
    ]
    experiment = load_record(record, written)
    with pytest.raises(ConfigError) as caught:
        build_net(experiment, {"num_classes": 3})
    lines = written.read_text().splitlines()
    found = {problem.key: (lines[(problem.line or 0) - 1].strip(" -'"), problem.what) for problem in caught.value.problems}
    assert {key: text for key, (text, _) in found.items()} == {
        "net.0.freeze_patterns.1": "layr1",
        "net.0.freeze_patterns.2": "r:bn[",
        "net.3.freeze_patterns.1": "hed",
        "net.4.kwargs.freeze_patterns.0": "head.clasifier",
    }
    assert tells(found["net.0.freeze_patterns.1"][1], "'layr1'", "nothing", "'layer1'")
    assert tells(found["net.4.kwargs.freeze_patterns.0"][1], "'head.clasifier'", "nothing", "'head.classifier'")


def test_statistics_of_batch_norms_can_be_frozen_alone(record: Record, written: Path) -> None:
    record["net"][0]["freeze_patterns"] = ["r:running_mean$"]
    assert all(p.requires_grad for p in build_net(load_record(record, written), {"num_classes": 3}).parameters())


def test_a_regular_expression_may_begin_at_the_names_of_its_module(record: Record, written: Path) -> None:
    record["net"][0]["freeze_patterns"] = ["r:^layer1"]
    net = build_net(load_record(record, written), {"num_classes": 3})
    assert {name.split(".")[1] for name, p in net.named_parameters() if not p.requires_grad} == {"layer1"}
