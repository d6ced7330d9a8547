"""The parts of the CIFAR-10 recipe in a run: whitening from the training images, Muon, alternating flips; resumed and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.harness.runs import times_resumed, train
from tests.harness.tiny import transforms
from up.__main__ import main
from up.api import build_dataset
from up.data.records import SampleKey

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture
def fast(config: Config) -> Config:
    """The recipe in small, on the images of the tests."""
    crop = {"type": "v2.RandomCrop", "kwargs": {"size": 32, "padding": 2, "padding_mode": "reflect"}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"] = transforms({"type": "alternating_flip"}, crop)
    config["trainer"]["optimizer"] = {
        "type": "Muon",
        "kwargs": {"lr": 0.1, "momentum": 0.6, "ns_steps": 3, "min_ndim": 4, "normalize_weights": True},
        "pconfig": {"bn_b": {"kwargs": {"lr": 0.05}}, "linear_w": {"kwargs": {"lr": 1.0}}},
        "special_param_group": [{"key": "whiten.bias", "lr": 0.05}],
    }
    config["trainer"]["lr_scheduler"] = {"type": "linear", "warmup_register_type": "no_scale_lr"}
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.9, "warmup": 10}}
    backbone = {"name": "backbone", "type": "airbench", "kwargs": {"widths": [8, 8, 8]}}
    head = {"name": "head", "type": "base_cls_head", "kwargs": {"classifier_cfg": {"type": "scaled_linear"}}}
    config["net"][:2] = [{**backbone, "freeze_patterns": ["r:norm\\d\\.weight"]}, head]
    return config


def weights(run: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "ckpt_latest.pth", weights_only=True)[kind]
    return state


def test_a_stopped_run_ends_with_the_same_weights(fast: Config, write: Write, tmp_path: Path) -> None:
    path = write(fast)
    assert train(path, f"saver.save_dir={tmp_path / 'whole'}") == 0
    stopped = tmp_path / "stopped"
    assert train(path, f"saver.save_dir={stopped}", "trainer.stop_epoch=1") == 75
    before = weights(stopped)
    assert train(path, f"saver.save_dir={stopped}") == 0
    assert times_resumed(stopped) == 1
    whole, resumed = weights(tmp_path / "whole"), weights(stopped)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(before["backbone.groups.0.conv1.weight"], whole["backbone.groups.0.conv1.weight"])


def test_the_whitening_layer_is_computed_once_and_stays(fast: Config, write: Write, tmp_path: Path) -> None:
    """Of the training images as the net gets them, and the same after training as before; its bias trains, the scales do not."""
    path = write(fast)
    assert train(path) == 0
    found = weights(Path(fast["saver"]["save_dir"]))
    data = build_dataset(path)
    mean, std = 0.4, 0.3
    seen = torch.stack([data[SampleKey(0, index)].image for index in range(len(data))]).double() / 255
    patches = torch.nn.functional.unfold((seen - mean) / std, 2).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    norms = found["backbone.whiten.weight"][:12].double().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, (values + 5e-4) ** -0.5, rtol=1e-3, atol=0)
    assert found["backbone.whiten.bias"].abs().max() > 0
    assert torch.equal(found["backbone.groups.0.norm1.weight"], torch.ones(8))


def test_flips_alternate_by_epoch_and_index(fast: Config, write: Write) -> None:
    data = build_dataset(write(fast)).with_transforms([])
    flips = build_dataset(write(fast)).transforms[:1]
    moved = data.with_transforms(flips)
    parity = []
    for index in range(len(data)):
        plain = data[SampleKey(0, index)].image
        forms = [moved[SampleKey(epoch, index)].image for epoch in range(4)]
        is_flipped = [torch.equal(form, plain.flip(-1)) for form in forms]
        assert is_flipped in ([True, False, True, False], [False, True, False, True])
        parity.append(is_flipped[0])
    assert 0.25 < np.mean(parity) < 0.75


def test_export(fast: Config, write: Write, tmp_path: Path) -> None:
    """The whitening layer is a convolution like the six others; the exporter compares the graph with torch."""
    onnx = pytest.importorskip("onnx")
    path = write(fast)
    assert train(path, "trainer.max_epoch=1") == 0
    assert main(["to_onnx", path, "--save-prefix", str(tmp_path / "net"), "-o", "trainer.max_epoch=1"]) == 0
    (file,) = tmp_path.rglob("*.onnx")
    assert [node.op_type for node in onnx.load(file).graph.node].count("Conv") == 7
