"""Every family of networks: the graph gives what the net gives, from tensors and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.harness.served import answers, assert_same_answers, drawn_checkpoint, exported, mixed_folder, write_config
from tests.harness.tiny import tiny_config
from up.build.experiment import load_experiment
from up.build.trained import load_net
from up.bundle.package import open_package
from up.bundle.session import Session
from up.models import mobile


def _timm(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": "timm", "kwargs": {"model_name": name, **kwargs}}


VIT = {"name": "head", "type": "vit_head", "kwargs": {"num_classes": 7}}
SWIN = {"embed_dim": 24, "depths": [2, 1], "num_heads": [1, 2]}  # with and without shifted windows
CNN = {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 7}}
GENOME = {
    "block": "basic",
    "layers": [1, 2, 1, 1],
    "base_channel": 8,
    "doublechannel": [0, 1, 0, 1, 0],
    "downsample": [1, 0, 1, 0, 0],
}
CONVNEXT = {"name": "head", "type": "convnext_head", "kwargs": {"num_classes": 7}}
CELLS = {
    "normal": [["sep_conv_3x3", 0], ["max_pool_3x3", 1]],
    "reduce": [["dil_conv_5x5", 0], ["skip_connect", 1]],  # and a skip connection that halves the map
}
# The plain ResNet is exported by all other tests of packages.
# Few blocks of each kind: the exporter takes as long as the graph has nodes.
BACKBONES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mobilenetv3": ({"type": "mobilenetv3", "kwargs": {"mode": "small"}}, CNN),
    "regnet": (_timm("regnety_002", depth=5, wm=2.0, act_layer="silu"), CNN),  # and what EfficientNets consist of
    "resnet_D, genome": ({"type": "resnet_custom", "kwargs": {**GENOME, "avg_down": "padded"}}, CNN),
    "cells": ({"type": "cell_network", "kwargs": {"genotype": CELLS, "layers": 3, "init_channels": 8, "drop_path_rate": 0.1}}, CNN),
    "vit": (_timm("vit_tiny_patch16_224", depth=1, img_size=32, act_layer="gelu_tanh", pooled=False), VIT),
    "swin": ({"type": "swin_tiny", "kwargs": SWIN}, CNN),
    "convnext": (_timm("convnext_atto", depths=[1, 1, 1, 1], pooled=False), CONVNEXT),
}
FEW_BLOCKS = (  # of MobileNetV3: with and without squeezing, both activations, both kernels, a sum
    ("ds_r1_k3_s2_e1_c16_se0.25_nre",),
    ("ir_r1_k3_s2_e4.5_c24_nre",),
    ("ir_r1_k5_s2_e4_c40_se0.25", "ir_r1_k5_s1_e6_c40_se0.25"),
    ("cn_r1_k1_s1_c96",),
)
pytestmark = pytest.mark.usefixtures("each_graph_once")
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def configured(images: Path, folder: Path, name: str) -> dict[str, Any]:
    backbone, head = BACKBONES[name]
    config = tiny_config(images, folder / "run")
    config["net"] = [{"name": "backbone", **backbone}, head, config["net"][-1]]
    for source in ("train", "test"):
        kwargs = config["dataset"][source]["dataset"]["kwargs"]
        kwargs["class_names"] = NAMES
        kwargs["image_reader"]["type"] = "fs_pillow"
    short_side = {"type": "torch_resize", "kwargs": {"size": 36}}
    crop = {"type": "torch_center_crop", "kwargs": {"size": 32}}
    config["dataset"]["test"]["dataset"]["kwargs"]["transformer"][:1] = [short_side, crop]
    return config


@pytest.mark.parametrize("name", BACKBONES)
def test_parity(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mobile._V3, "small", FEW_BLOCKS)
    config = write_config(configured(images, tmp_path, name), tmp_path)
    checkpoint = drawn_checkpoint(config, tmp_path / "ckpt.pth", NAMES)
    package = exported(config, folder=tmp_path / "out", ckpt=checkpoint)
    opened = open_package(package)
    assert opened.manifest.parity.max_abs <= opened.manifest.parity.tolerance

    net = load_net(load_experiment(config), checkpoint).net
    session = Session(opened.model, name)
    draw = torch.Generator().manual_seed(3)
    for batch in (1, 2, 5):
        inputs = torch.randn(batch, 3, 32, 32, generator=draw)
        with torch.inference_mode():
            expected = net({"image": inputs})["logits"].numpy()
        assert np.ptp(expected) > 1  # outputs that differ: a dead net would agree with anything
        assert np.abs(session(inputs.numpy())["scores"] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())

    folder = str(mixed_folder(tmp_path / "mixed"))
    of_package = answers(capsys, folder, "--bundle", str(package))
    of_checkpoint = answers(capsys, folder, "--config", str(config), "--ckpt", str(checkpoint))
    assert len(of_package) == 9
    assert_same_answers(of_package, of_checkpoint, within=1e-3)
