"""UP's checkpoints in our networks: every tensor in its place, and the features that UP's networks compute.

``tests/data/up_networks.json.gz`` has, for eleven backbones of UP, names and shapes of their tensors, and of the feature
that they compute with the weights of ``drawn`` from ``noise``: shape, mean, standard deviation and twelve values.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.harness.facts import facts, tells
from tests.harness.nets import undrawn
from up.config.parts import build_part
from up.models.adapter import Backbone
from up.models.backbones import BACKBONES
from up.models.keymaps import KEY_MAPS
from up.models.net import Net
from up.models.norm import NORMS
from up.models.weights import LoadReport, Weights, WeightsError, load_weights, read_state, variant_of

pytestmark = pytest.mark.integration  # full-size networks

torch.set_num_threads(1)
load_with_heads = partial(load_weights, heads={"head": "classifier"})
DATA = Path(__file__).parents[2] / "data" / "up_networks.json.gz"
NETWORKS: dict[str, dict[str, Any]] = json.loads(gzip.decompress(DATA.read_bytes()))
# how the file is read, and how many tensors are called otherwise here
READ_AS = {
    "resnet18": ("UP, layer0", 6),
    "resnet50": ("UP, layer0", 18),
    "resnet50_D": ("UP resnet_D", 30),  # the stem, and convolution and norm of four shortcuts
    "mobilenetv2": ("UP mobilenetv2", 318),
    "mobilenetv3": ("UP mobilenetv3", 294),
    "regnetx_400m": ("UP regnet", 420),
    "regnety_400m": ("UP regnet", 376),
    "convnext_tiny": ("facebook convnext", 178),
    "swin_tiny": ("UP swin", 11),  # three merging layers and the last norm
    "vit_base_patch16_224": ("UP vit", 149),
    "CSWin_64_12211_tiny_224": ("UP CSWin", 6),
}
STEM = ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked")
STAGE_NORMS = tuple(f"norm{stage}.{kind}" for stage in range(3) for kind in ("weight", "bias"))
UNUSED = {"resnet50_D": STEM, "swin_tiny": STAGE_NORMS, "CSWin_64_12211_tiny_224": STAGE_NORMS}


def drawn(name: str, shape: list[int]) -> Tensor:
    """The values of a tensor, drawn by its name."""
    if re.search(r"(num_batches_tracked|relative_position_index)$", name):
        return torch.zeros(shape, dtype=torch.int64)
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        values = draw.uniform(0.5, 1.5, shape)
    elif len(shape) <= 1:
        values = draw.standard_normal(shape) * 0.1
    else:
        values = draw.standard_normal(shape) * np.sqrt(1 / prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, np.float32))


def noise(side: int = 224) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal((2, 3, side, side)).astype(np.float32))


def state_of(network: str) -> dict[str, Tensor]:
    return {name: drawn(name, shape) for name, shape in NETWORKS[network]["tensors"].items()}


def build(name: str, **kwargs: Any) -> Backbone:
    network: Backbone = BACKBONES.get(name)(**kwargs)
    return network.eval()


def feature_of(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        feature: Tensor = network({"image": image})["features"][-1]
    if feature.ndim == 3:  # ViT's class token, then its patches in rows
        side = int((feature.shape[1] - 1) ** 0.5)
        feature = feature[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return feature


class Head(nn.Module):
    def __init__(self, planes: int, classes: int = 5) -> None:
        super().__init__()
        self.classifier = nn.Linear(planes, classes)


def strictly_loaded(report: LoadReport) -> bool:
    return not (report.missing or report.unexpected or report.misshaped or report.reinitialised or report.resized or report.skipped)


@pytest.mark.integration
@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_of_up_gives_the_features_of_up(name: str, tmp_path: Path) -> None:
    facts = NETWORKS[name]
    with undrawn():
        backbone = build_part({"type": name, "kwargs": facts["kwargs"]}, "backbone", {"backbone": BACKBONES, "norm": NORMS}).eval()
    net = Net([("backbone", backbone), ("head", Head(backbone.out_planes[-1]))])
    head = {"head.classifier.weight": torch.randn(5, backbone.out_planes[-1]), "head.classifier.bias": torch.randn(5)}
    state = {f"backbone.{key}": tensor for key, tensor in state_of(name).items()}
    weights = Weights("ckpt.pth", {**state, **head})
    if name == "resnet18":  # the others need no file of up to 350 MB
        torch.save({"model": {f"module.{key}": tensor for key, tensor in weights.model.items()}}, tmp_path / "ckpt.pth")
        weights = read_state(tmp_path / "ckpt.pth")
    report = load_weights(net, weights)
    assert (report.naming, report.renamed) == READ_AS[name]
    assert tells(report.lines()[1], "UP", "checkpoint", report.renamed)
    assert strictly_loaded(report)
    unused = UNUSED.get(name, ())
    immaterial = sum(key.endswith("relative_position_index") for key in state)
    assert len(report.loaded) == len(state) + len(head) - len(unused) - immaterial
    assert [note for note in report.notes if "left out" in note and f"backbone.{unused[-1]}" in note] or not unused
    assert torch.equal(net.state_dict()["head.classifier.weight"], head["head.classifier.weight"])
    feature = feature_of(backbone, noise())
    expected = torch.tensor(facts["values"])
    assert list(feature.shape) == facts["shape"]
    found = feature.flatten()[torch.tensor(facts["at"])]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert float(feature.mean()) == pytest.approx(facts["mean"], rel=1e-3, abs=1e-6)
    assert float(feature.std()) == pytest.approx(facts["std"], rel=1e-5)


# ---------------------------------------------------------------------------------------------- MobileNetV3, small


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        linear = [nn.Linear(channels, channels // 4, bias=False), nn.ReLU(), nn.Linear(channels // 4, channels, bias=False)]
        self.fc = nn.Sequential(*linear, nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.fc(x.mean((2, 3)))[:, :, None, None]
        return scaled


class Residual(nn.Module):
    def __init__(self, planes: int, hidden: int, out: int, kernel: int, stride: int, squeeze: bool, act: nn.Module) -> None:
        super().__init__()
        self.adds = stride == 1 and planes == out
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        squeezing = Squeeze(hidden) if squeeze else nn.Identity()
        last = [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
        if planes == hidden:
            layers = [depthwise, nn.BatchNorm2d(hidden), act, squeezing, *last]
        else:
            first = [nn.Conv2d(planes, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act]
            layers = [*first, depthwise, nn.BatchNorm2d(hidden), squeezing, act, *last]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


# kernel, hidden channels, channels, squeeze-excite, hard swish, stride: tables 1 and 2 of the paper
LARGE = [
    (3, 16, 16, 0, 0, 1),
    (3, 64, 24, 0, 0, 2),
    (3, 72, 24, 0, 0, 1),
    (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2),
    (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
]
SMALL = [
    (3, 16, 16, 1, 0, 2),
    (3, 72, 24, 0, 0, 2),
    (3, 88, 24, 0, 0, 1),
    (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1),
    (5, 120, 48, 1, 1, 1),
    (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2),
    (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
]


def mobilenet_v3(table: list[tuple[int, int, int, int, int, int]]) -> nn.Module:
    """The network as UP numbers its layers."""

    def convolution(planes: int, out: int, kernel: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(planes, out, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out), nn.Hardswish())

    layers = [convolution(3, 16, 3, 2)]
    planes = 16
    for kernel, hidden, out, squeeze, swish, stride in table:
        layers.append(Residual(planes, hidden, out, kernel, stride, bool(squeeze), nn.Hardswish() if swish else nn.ReLU()))
        planes = out
    last = [convolution(planes, 6 * planes, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6 * planes, 1280, 1), nn.Hardswish()]
    network = nn.Module()
    network.features = nn.Sequential(*layers, *last)
    return network.eval()


@pytest.mark.parametrize(("mode", "table"), [("large", LARGE), ("small", SMALL)])
def test_both_sizes_of_mobilenetv3_compute_what_the_network_of_ups_names_computes(mode: str, table: list[Any]) -> None:
    theirs = mobilenet_v3(table)
    shapes = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert mode == "small" or shapes == NETWORKS["mobilenetv3"]["tensors"]  # so the network above is UP's
    theirs.load_state_dict({name: drawn(name, shape) for name, shape in shapes.items()})
    ours = build("mobilenetv3", mode=mode)
    report = load_weights(ours, Weights("up.pth", theirs.state_dict()))
    assert report.naming == "UP mobilenetv3"
    assert strictly_loaded(report)
    image = noise(64)
    with torch.no_grad():
        torch.testing.assert_close(feature_of(ours, image), theirs.features(image))


# ----------------------------------------------------------------------------------------------------- EfficientNet


def names_of_lukemelas(network: nn.Module) -> dict[str, str]:
    """Names of timm's network to those of EfficientNet-PyTorch: blocks counted through, an underscore before each layer."""
    layers = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(network.blocks) for j, block in enumerate(stage)]
    for number, (path, block) in enumerate(blocks):
        own = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
        if hasattr(block, "conv_pwl"):
            own |= {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
        else:
            own |= {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
        layers |= {f"{path}.{ours}": f"_blocks.{number}.{theirs}" for ours, theirs in own.items()}
    return {key: f"{layers[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}" for key in network.state_dict()}


@pytest.mark.parametrize("size", [0, 3, 7])
def test_names_of_efficientnets(size: int) -> None:
    with torch.device("meta"):
        names = names_of_lukemelas(timm.create_model(f"tf_efficientnet_b{size}"))
        ours = BACKBONES.get(f"efficientnet_b{size}")().state_dict()
    fitting = [naming for naming in KEY_MAPS if naming.to_timm(names.values(), ours) == list(names)]
    assert [naming.variant for naming in fitting] == ["up"]
    assert set(names) - set(ours) == {"classifier.weight", "classifier.bias"}


def test_an_efficientnet_computes_what_timms_of_tensorflow_computes() -> None:
    reference = timm.create_model("tf_efficientnet_b0").eval()
    names = names_of_lukemelas(reference)
    reference.load_state_dict({key: drawn(theirs, list(reference.state_dict()[key].shape)) for key, theirs in names.items()})
    old = {f"backbone.{names[key]}": tensor for key, tensor in reference.state_dict().items() if not key.startswith("classifier")}
    assert "backbone._blocks.15._depthwise_conv.weight" in old
    net = Net([("backbone", build("efficientnet_b0"))])
    report = load_with_heads(net, Weights("up.pth", old))
    assert strictly_loaded(report)
    assert report.renamed == len(report.loaded) == len(old)
    image = noise(65)  # odd, where padding as TensorFlow does shows
    with torch.no_grad():
        expected = reference.forward_features(image)
    torch.testing.assert_close(feature_of(net["backbone"], image), expected)
    other = build("efficientnet_b0", variant="timm")
    other.load_state_dict(net["backbone"].state_dict())
    assert not torch.allclose(feature_of(other, image), expected, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ one name, two networks


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mobilenetv2", lambda: torchvision.models.mobilenet_v2()),
        ("mobilenetv3", lambda: torchvision.models.mobilenet_v3_large()),
        ("efficientnet_b0", lambda: torchvision.models.efficientnet_b0()),
        ("vit_base_patch16_224", lambda: torchvision.models.vit_b_16()),
    ],
)
def test_weights_of_torchvision_need_the_variant_of_timm(name: str, theirs: Any) -> None:
    with torch.device("meta"):
        weights = Weights("tv.pth", theirs().state_dict())
        with pytest.raises(WeightsError, match=facts("variant: timm", "variant: up", "Set variant: timm")):
            load_with_heads(Net([("backbone", build(name)), ("head", Head(4))]), weights)
        backbone = build(name, variant="timm")
        report = load_with_heads(Net([("backbone", backbone), ("head", Head(backbone.out_planes[-1], 1000))]), weights)
    assert strictly_loaded(report)


def test_weights_of_up_need_the_variant_of_up() -> None:
    with pytest.raises(WeightsError, match=facts("variant: up", "variant: timm", "Set variant: up")):
        load_with_heads(build("mobilenetv2", variant="timm"), Weights("up.pth", state_of("mobilenetv2")))


def test_a_checkpoint_says_of_which_variant_it_is(tmp_path: Path) -> None:
    """The tensors of both variants of an EfficientNet are called alike, so nothing else would tell them apart."""
    network = build("efficientnet_b0", variant="timm")
    torch.save({"model": network.state_dict(), "variant": variant_of(network)}, tmp_path / "ckpt.pth")
    with pytest.raises(WeightsError, match=facts("variant: timm", "kwargs")):
        load_with_heads(build("efficientnet_b0"), read_state(tmp_path / "ckpt.pth"))
    assert strictly_loaded(load_with_heads(network, read_state(tmp_path / "ckpt.pth")))


def test_names_of_timm_leave_the_variant_open() -> None:
    state = build("efficientnet_b0", variant="timm").state_dict()
    report = load_with_heads(build("efficientnet_b0"), Weights("b0.pth", state))
    assert tells(report.lines()[-1], "variant: timm", "kwargs")
    assert load_with_heads(build("efficientnet_b0"), Weights("b0.pth", state, variant="up")).notes == []


def test_a_file_of_the_other_network_is_told_by_its_shapes() -> None:
    state = timm.create_model("mobilenetv3_large_100").state_dict()
    with pytest.raises(WeightsError, match=facts("variant: up", "set variant: timm")):
        load_with_heads(build("mobilenetv3"), Weights("v3.pth", state))


def test_missing_unexpected_and_misshaped_tensors_of_up_are_told_apart() -> None:
    state = {f"backbone.{key}": tensor for key, tensor in state_of("resnet18").items()}
    del state["backbone.layer0.0.weight"]
    state["backbone.layer0.9.weight"] = torch.zeros(1)
    state["backbone.layer4.1.bn2.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        load_with_heads(Net([("backbone", build("resnet18"))]), Weights("up.pth", state))
    told = str(caught.value)
    assert tells(told, "1", "backbone.conv1.weight", "1", "backbone.layer0.9.weight")
    assert tells(told, "1", "backbone.layer4.1.bn2.bias", "3", "512")
