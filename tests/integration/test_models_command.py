"""``up models`` says of timm's networks what timm says, without a network connection."""

from __future__ import annotations

import json
import socket

import pytest
import timm

from tests.harness.facts import tells
from tests.harness.refusals import refused
from up.__main__ import main

pytestmark = pytest.mark.usefixtures("_offline")


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_weights_with_the_preprocessing_of_timm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "mobilenetv3_small_050", "--pretrained", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    name = "mobilenetv3_small_050.lamb_in1k"
    config = timm.get_pretrained_cfg(name)
    assert tuple(rows[name]["input_size"]) == config.input_size
    assert tuple(rows[name]["mean"]) == config.mean
    assert tuple(rows[name]["std"]) == config.std
    assert rows[name]["interpolation"] == config.interpolation
    assert rows[name]["crop_pct"] == config.crop_pct
    assert rows[name]["tags"] == ["lamb_in1k"]
    assert rows[name]["parameters"] == sum(each.numel() for each in timm.create_model("mobilenetv3_small_050").parameters())
    assert 20e6 < rows[name]["macs"] < 30e6  # 23.5M (Howard et al. 2019, table 3, with a smaller last layer)


def test_a_table_of_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "convnext_att?"]) == 0
    said = capsys.readouterr().out
    assert tells(said.splitlines(), "convnext_atto", "3.7M", "3x224x224", "0.485 0.456 0.406", "bicubic", "d2_in1k")
    assert "convnext_atto_ols" not in said


def test_all_networks_are_listed_without_counting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    said = capsys.readouterr()
    assert all(name in said.out for name in ("resnet50", "vit_tiny_patch16_224"))
    assert "MACs" not in said.out
    assert tells(said.err, f"{len(timm.list_models()):,}", "PATTERN")


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(["models", "resnt18"], capsys)
    assert tells(line, "resnt18", "resnet18")
