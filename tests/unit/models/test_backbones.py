from __future__ import annotations

import copy
import functools
import inspect
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.harness.facts import facts
from tests.harness.nets import meta_device
from up.config.signature import signature_of
from up.errors import UserError
from up.models.adapter import Backbone, Rate, as_backbone
from up.models.backbones import BACKBONES
from up.models.convnets import convnext
from up.models.mobile import mobilenetv2
from up.models.resnets import resnet_custom
from up.models.timm_network import timm_network
from up.models.transformers import swin, vit

pytestmark = pytest.mark.integration  # beside full-size networks of timm

# Millions of parameters with a linear classifier of 1000 classes, as published, and kwargs.
PUBLISHED: list[tuple[str, dict[str, Any], float]] = [
    ("resnet18", {}, 11.690),
    ("resnet34", {}, 21.798),
    ("resnet50", {}, 25.557),
    ("resnet101", {}, 44.549),
    ("resnet152", {}, 60.193),
    ("resnet152", {"deep_stem": True, "avg_down": True}, 60.212),
    ("resnet18_D", {"variant": "timm"}, 11.709),
    ("resnet34_D", {"variant": "timm"}, 21.817),
    ("resnet50_D", {}, 25.557),
    ("resnet50_D", {"deep_stem": True}, 25.576),
    ("resnet101_D", {"variant": "timm"}, 44.568),
    ("resnet152_D", {"variant": "timm"}, 60.212),
    ("resnet_custom_D", {"block": "bottleneck", "layers": [3, 4, 6, 3]}, 25.557),
    ("resnet_custom", {"block": "bottleneck", "layers": [3, 4, 6, 3]}, 25.557),
    ("resnet_custom", {"depth": 18}, 11.690),
    ("resnet_custom", {"depth": 101}, 44.549),
    ("airbench", {}, 2.224),  # airbench94 has 1.97 M with 10 classes
    ("cell_network", {"genotype": "darts_v2", "layers": 14, "init_channels": 48, "stem": "imagenet"}, 4.719),
    ("cell_supernet", {}, 2.185),  # 1.931 with the 10 classes of the paper
    ("mobilenetv2", {"width_mult": 0.5, "variant": "timm"}, 1.97),
    ("mobilenetv2", {}, 3.50),
    ("mobilenetv2", {"width_mult": 2.0}, 11.26),
    ("mobilenetv3", {"mode": "large"}, 5.48),
    ("mobilenetv3", {"mode": "small", "variant": "timm"}, 2.95),  # 2.54 where the last layer has 1024 channels, not 1280
    ("efficientnet_b0", {}, 5.289),
    ("efficientnet_b1", {}, 7.794),
    ("efficientnet_b2", {}, 9.110),
    ("efficientnet_b3", {}, 12.233),
    ("efficientnet_b4", {}, 19.342),
    ("efficientnet_b5", {}, 30.390),
    ("efficientnet_b6", {}, 43.041),
    ("efficientnet_b7", {}, 66.348),
    ("regnetx_200m", {}, 2.685),
    ("regnetx_400m", {}, 5.158),
    ("regnetx_600m", {}, 6.196),
    ("regnetx_800m", {}, 7.260),
    ("regnetx_1600m", {}, 9.190),
    ("regnetx_3200m", {}, 15.296),
    ("regnetx_4000m", {}, 22.118),
    ("regnetx_6400m", {}, 26.209),
    ("regnetx_8000m", {}, 39.573),
    ("regnetx_12000m", {}, 46.106),
    ("regnetx_16000m", {}, 54.279),
    ("regnetx_32000m", {}, 107.812),
    ("regnety_200m", {}, 3.163),
    ("regnety_400m", {}, 4.344),
    ("regnety_600m", {}, 6.055),
    ("regnety_800m", {}, 6.263),
    ("regnety_1600m", {}, 11.202),
    ("regnety_3200m", {}, 19.436),
    ("regnety_4000m", {}, 20.647),
    ("regnety_6400m", {}, 30.583),
    ("regnety_8000m", {}, 39.180),
    ("regnety_12000m", {}, 51.823),
    ("regnety_16000m", {}, 83.590),
    ("regnety_32000m", {}, 145.047),
    ("convnext_tiny", {}, 28.589),
    ("convnext_small", {}, 50.224),
    ("convnext_base", {}, 88.591),
    ("convnext_large", {}, 197.767),
    ("convnext_xlarge", {}, 350.197),
    ("swin_tiny", {}, 28.29),
    ("swin_small", {}, 49.61),
    ("swin_base_224", {}, 87.77),
    ("swin_base_384", {}, 87.90),
    ("swin_large_224", {}, 196.54),
    ("swin_large_384", {}, 196.74),
    ("vit_tiny_patch16_224", {}, 5.717),
    ("vit_small_patch16_224", {}, 22.05),
    ("vit_base_patch16_224", {}, 86.57),
    ("vit_base_patch16_384", {}, 86.86),
    ("vit_base_patch32_224", {}, 88.22),
    ("vit_large_patch16_224", {}, 304.33),
    ("vit_large_patch16_384", {}, 304.72),
    ("vit_huge_patch14_224", {}, 632.05),
    ("deit_tiny_patch16_224", {}, 5.717),
    ("deit_small_patch16_224", {}, 22.05),
    ("deit_base_patch16_224", {}, 86.57),
    ("deit_base_patch16_384", {}, 86.86),
    ("CSWin_64_12211_tiny_224", {}, 22.32),
    ("CSWin_64_24322_small_224", {}, 34.65),
    ("CSWin_96_24322_base_224", {}, 77.39),
    ("CSWin_96_24322_base_384", {}, 77.39),
    ("CSWin_144_24322_large_224", {}, 173.3),
    ("CSWin_144_24322_large_384", {}, 173.3),
    ("timm", {"model_name": "resnet26t"}, 16.01),
]


# One of each family, of each argument that changes its feature, and of each image size; the others differ in numbers alone.
SHAPED = re.compile(
    "resnet(18|50_D|_custom)$|mobilenet|efficientnet_b[03]|regnet[xy]_200m|convnext_tiny|swin_tiny|swin_base_384|vit_tiny|"
    "vit_base_patch(16_384|32)|vit_huge|deit_tiny|CSWin_64_12211|timm"
)


@functools.cache
def on_meta(name: str, kwargs: tuple[tuple[str, Any], ...]) -> Backbone:
    with meta_device():
        network: Backbone = BACKBONES.get(name)(**{key: list(v) if isinstance(v, tuple) else v for key, v in kwargs})
    return network


def meta(name: str, kwargs: dict[str, Any]) -> Backbone:
    return on_meta(name, tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in kwargs.items()))


def build(name: str, **kwargs: Any) -> Backbone:
    torch.manual_seed(0)
    network: Backbone = BACKBONES.get(name)(**kwargs)
    return network


def shake(network: nn.Module) -> None:
    """Give every vector other values than 0 and 1, so that no branch of the network is silent."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)


def features_of(network: nn.Module, image: Tensor) -> list[Tensor]:
    features: list[Tensor] = network({"image": image})["features"]
    return features


def tiny(**kwargs: Any) -> Backbone:
    return build("resnet_custom", **{"block": "basic", "layers": [1, 1, 1, 1], "width": 8, **kwargs})


@pytest.mark.parametrize(("name", "kwargs", "millions"), PUBLISHED)
def test_parameters_with_a_linear_head_are_as_published(name: str, kwargs: dict[str, Any], millions: float) -> None:
    network = meta(name, kwargs)
    planes = network.out_planes[-1]
    head = 1000 * planes + 1000 + (2 * planes if name.startswith("convnext") else 0)  # convnext_head has a LayerNorm
    assert (sum(p.numel() for p in network.parameters()) + head) / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize(("name", "kwargs"), [row[:2] for row in PUBLISHED if SHAPED.match(row[0])])
def test_shape_of_the_feature(name: str, kwargs: dict[str, Any]) -> None:
    network = meta(name, kwargs)
    side = network._image_size[0] if network._image_size else 64
    with torch.device("meta"), torch.no_grad():
        (feature,) = features_of(network.eval(), torch.empty(2, 3, side, side))
    (planes,), (stride,) = network.out_planes, network.out_strides
    if name.startswith(("vit", "deit")):
        assert feature.shape == (2, 1 + (side // stride) ** 2, planes)
    elif name in ("mobilenetv3", "timm"):
        assert feature.shape == (2, planes, 1, 1)
    else:
        assert stride == 32
        assert feature.shape == (2, planes, side // 32, side // 32)


def test_every_name_of_the_table_is_tested() -> None:
    assert {name for name, _, _ in PUBLISHED} == set(BACKBONES)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_signature_is_explicit_and_has_types(name: str) -> None:
    constructor = BACKBONES.get(name)
    parameters = inspect.signature(constructor).parameters
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters.values())
    signature = signature_of(constructor)
    assert signature.open == (name == "timm")
    assert all(p.annotation is not Any for p in signature.parameters.values())
    assert name == "airbench" or signature.parameters["normalize"].table == "norm"  # the recipe of airbench fixes its norms
    assert constructor.__doc__.splitlines()[0].endswith(".")


def test_signature_of_a_variant_is_what_its_family_leaves_open() -> None:
    resnet = inspect.signature(BACKBONES.get("resnet50_D"))
    assert {"block", "layers"}.isdisjoint(resnet.parameters)
    assert resnet.parameters["variant"].default is None
    assert resnet.parameters["drop_path_rate"].annotation is Rate
    assert inspect.signature(BACKBONES.get("swin_base_384")).parameters["window_size"].default == 12
    with pytest.raises(TypeError, match="momentun"):
        build("resnet18", momentun=1)


@pytest.mark.parametrize(
    ("name", "kwargs", "timm_name"),
    [
        ("resnet18", {}, "resnet18"),
        ("resnet152_D", {"variant": "timm"}, "resnet152d"),
        ("resnet50_D", {"deep_stem": True}, "resnet50d"),
        ("mobilenetv2", {"width_mult": 0.5, "variant": "timm"}, "mobilenetv2_050"),
        ("mobilenetv3", {"variant": "timm"}, "mobilenetv3_large_100"),
        ("regnety_200m", {}, "regnety_002"),
        ("convnext_tiny", {}, "convnext_tiny"),
        ("swin_base_384", {}, "swin_base_patch4_window12_384"),
        ("vit_base_patch32_224", {}, "vit_base_patch32_224"),
    ],
)
def test_names_and_shapes_of_tensors_are_timms(name: str, kwargs: dict[str, Any], timm_name: str) -> None:
    with meta_device():
        reference = timm.create_model(timm_name, num_classes=0).state_dict()
    expected = {key: value.shape for key, value in reference.items() if not key.startswith("head.norm.")}
    assert {key: value.shape for key, value in meta(name, kwargs).state_dict().items()} == expected


SMALL_SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
SMALL_VIT: dict[str, Any] = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
SMALL_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (lambda: resnet_custom(block="basic", layers=[2, 1, 1, 1]), lambda: ResNet(BasicBlock, (2, 1, 1, 1))),
        (lambda: mobilenetv2(variant="timm"), lambda: timm.create_model("mobilenetv2_100")),
        (lambda: build("efficientnet_b0", variant="timm"), lambda: timm.create_model("efficientnet_b0")),
        (lambda: build("efficientnet_b0"), lambda: timm.create_model("tf_efficientnet_b0")),
        (lambda: build("resnet18_D", deep_stem=True), lambda: timm.create_model("resnet18d")),
        (lambda: convnext(**SMALL_CONVNEXT), lambda: ConvNeXt(**SMALL_CONVNEXT)),
        (lambda: swin(**SMALL_SWIN, pretrain_img_size=64), lambda: SwinTransformer(64, **SMALL_SWIN)),
        (lambda: vit(**SMALL_VIT, img_size=[64, 64], variant="timm"), lambda: VisionTransformer(64, **SMALL_VIT)),
        (lambda: timm_network(model_name="resnet10t", pooled=False), lambda: timm.create_model("resnet10t")),
    ],
)
def test_features_are_what_timm_computes(make: Callable[[], Backbone], reference: Callable[[], Any]) -> None:
    theirs = reference().eval()
    shake(theirs)
    network = make().eval()
    wanted = network.state_dict().keys()
    network.load_state_dict({key: value for key, value in theirs.state_dict().items() if key in wanted})
    image = torch.randn(2, 3, 64, 64)
    expected = theirs.forward_features(image)
    (feature,) = features_of(network, image)
    if isinstance(theirs, SwinTransformer):
        expected = expected.permute(0, 3, 1, 2)
    torch.testing.assert_close(feature, expected)


def test_mobilenetv3_ends_where_the_classifier_begins() -> None:
    reference = timm.create_model("mobilenetv3_large_100").eval()
    network = build("mobilenetv3", variant="timm").eval()
    network.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("classifier")})
    image = torch.randn(2, 3, 64, 64)
    (feature,) = features_of(network, image)
    assert feature.shape == (2, 1280, 1, 1)
    torch.testing.assert_close(reference.classifier(feature.flatten(1)), reference(image))


@pytest.mark.parametrize("model_name", ["test_vit3", "test_convnext", "lcnet_035"])
def test_a_pooled_timm_network_and_a_linear_layer_are_timms_network(model_name: str) -> None:
    reference = timm.create_model(model_name, num_classes=7).eval()
    network = build("timm", model_name=model_name).eval()
    missing, unexpected = network.load_state_dict(reference.state_dict(), strict=False)
    assert missing == []
    assert all(key.split(".")[-2] in ("fc", "head", "classifier", "0", "1") for key in unexpected)
    image = torch.randn(2, *reference.pretrained_cfg["input_size"])
    (feature,) = features_of(network, image)
    assert feature.shape == (2, network.out_planes[0], 1, 1)
    torch.testing.assert_close(feature.flatten(1), reference.forward_head(reference.forward_features(image), pre_logits=True))


@pytest.mark.parametrize("model_name", ["crossvit_9_240", "vgg11", "mambaout_femto", "vit_base_patch16_siglip_224"])
def test_pooled_features_have_one_shape_for_all_of_timm(model_name: str) -> None:
    network = meta("timm", {"model_name": model_name}).eval()
    side = network.pretrained_cfg["input_size"][-1]
    (feature,) = features_of(network, torch.empty(2, 3, side, side, device="meta"))
    assert feature.shape == (2, network.out_planes[0], 1, 1)


def test_path_names_and_class_stay_timms() -> None:
    network = meta("resnet18", {})
    assert isinstance(network, ResNet)
    assert type(network).__name__ == "ResNet"
    assert type(network) is type(meta("resnet34", {}))
    assert "layer4.1.conv2.weight" in network.state_dict()
    assert not any(key.startswith("fc") for key in network.state_dict())
    assert not any(key.startswith("head") for key in meta("convnext_tiny", {}).state_dict())
    assert isinstance(meta("convnext_tiny", {}).get_submodule("stages.3.blocks.2"), nn.Module)


def test_copies_and_saved_weights_compute_the_same() -> None:
    network = tiny(out_layers=[2, 4], frozen_layers=[0]).eval()
    shake(network)
    image = torch.randn(1, 3, 32, 32)
    expected = features_of(network, image)
    twin = copy.deepcopy(network)
    assert twin.conv1 is not network.conv1
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    other = tiny(out_layers=[2, 4]).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for feature, again, loaded in zip(expected, features_of(twin, image), features_of(other, image), strict=True):
        torch.testing.assert_close(again, feature)
        torch.testing.assert_close(loaded, feature)
    assert not twin.train().bn1.training


def test_channels_last_gives_the_same_features() -> None:
    network = tiny().eval()
    shake(network)
    image = torch.randn(2, 3, 64, 64)
    expected = features_of(network, image)[0]
    faster = network.to(memory_format=torch.channels_last)
    feature = features_of(faster, image.to(memory_format=torch.channels_last))[0]
    assert feature.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kwargs", "planes", "strides"),
    [
        ("resnet18", {"out_layers": [1, 2, 3, 4]}, [64, 128, 256, 512], [4, 8, 16, 32]),
        ("resnet18", {"out_layers": [0, 3]}, [64, 256], [2, 16]),
        ("resnet18", {"out_strides": [8, 32]}, [128, 512], [8, 32]),
        ("resnet18", {"out_layers": [3], "out_strides": [16]}, [256], [16]),
        ("resnet18", {"stem": "small", "out_layers": [0, 4]}, [64, 512], [1, 8]),
        ("resnet18", {"stem": "small", "out_strides": [2, 8]}, [128, 512], [2, 8]),
        ("regnetx_200m", {"out_strides": [4, 8, 16, 32]}, [24, 56, 152, 368], [4, 8, 16, 32]),
        ("mobilenetv2", {"c4_output": True}, [96, 1280], [16, 32]),
        ("mobilenetv2", {"out_strides": [8]}, [32], [8]),
        ("efficientnet_b0", {"out_strides": [8, 16, 32]}, [40, 112, 1280], [8, 16, 32]),
        ("convnext_tiny", {"out_layers": [1, 4]}, [96, 768], [4, 32]),
        ("swin_tiny", {"out_layers": [2, 3], "img_size": 64}, [192, 384], [8, 16]),
        ("timm", {"model_name": "resnet18", "out_strides": [4, 16]}, [64, 256], [4, 16]),
    ],
)
def test_stages_can_be_chosen(name: str, kwargs: Any, planes: list[int], strides: list[int]) -> None:
    network = meta(name, kwargs)
    assert network.out_planes == planes
    assert network.out_strides == strides
    with meta_device():
        features = features_of(network.eval(), torch.empty(2, 3, 64, 64))
    assert [tuple(f.shape) for f in features] == [(2, c, 64 // s, 64 // s) for c, s in zip(planes, strides, strict=True)]


@pytest.mark.parametrize(("given", "planes"), [(False, [1280]), (True, [112, 1280])])
def test_mobilenetv3_adds_the_map_of_stride_16_before_its_pooled_feature(given: bool, planes: list[int]) -> None:
    network = meta("mobilenetv3", {"c4_output": given})
    assert network.out_planes == planes
    with meta_device():
        features = features_of(network.eval(), torch.empty(2, 3, 64, 64))
    assert [tuple(feature.shape) for feature in features] == [(2, 112, 4, 4), (2, 1280, 1, 1)][-len(planes) :]


def test_stages_are_what_timm_computes_there() -> None:
    network = build("regnetx_200m", out_layers=[2, 4]).eval()
    image = torch.randn(1, 3, 64, 64)
    second, last = features_of(network, image)
    stem_and_two = network.s2(network.s1(network.stem(image)))
    torch.testing.assert_close(second, stem_and_two)
    torch.testing.assert_close(last, network.forward_features(image))


def test_the_last_of_several_features_is_the_final_one() -> None:
    network = build("mobilenetv3", out_layers=[3, 4]).eval()
    image = torch.randn(1, 3, 64, 64)
    map_16, pooled = features_of(network, image)
    assert (map_16.shape, pooled.shape) == ((1, 112, 4, 4), (1, 1280, 1, 1))
    torch.testing.assert_close(pooled, features_of(build("mobilenetv3").eval(), image)[0])


def test_layers_behind_the_last_feature_are_left_out() -> None:
    network = tiny(out_layers=[2])
    assert {key.split(".")[0] for key, _ in network.named_parameters()} == {"conv1", "bn1", "layer1", "layer2"}
    features_of(network, torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_frozen_layers_do_not_train_and_keep_their_statistics() -> None:
    network = tiny(frozen_layers=[0, 1]).train()
    before = copy.deepcopy(network.state_dict())
    features_of(network, torch.randn(4, 3, 32, 32))[0].sum().backward()
    frozen = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert all((p.grad is None) == (not p.requires_grad) for p in network.parameters())
    changed = {key.split(".")[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"layer2", "layer3", "layer4"}
    assert not network.layer1.training
    assert network.layer2.training
    assert not network.eval().layer2.training


@pytest.mark.parametrize(("style", "strides"), [("pytorch", ((1, 1), (2, 2))), ("caffe", ((2, 2), (1, 1)))])
def test_style_places_the_stride_of_a_bottleneck(style: str, strides: Any) -> None:
    network = tiny(block="bottleneck", style=style)
    for stage in ("layer2", "layer3", "layer4"):
        block = network.get_submodule(f"{stage}.0")
        assert (block.conv1.stride, block.conv2.stride) == strides
    assert features_of(network, torch.randn(2, 3, 64, 64))[0].shape == (2, 256, 2, 2)


def test_small_stem_and_width() -> None:
    network = tiny(stem="small", width=32, layers=[1, 2, 1, 1])
    assert network.conv1.kernel_size == (3, 3)
    assert isinstance(network.maxpool, nn.Identity)
    assert (network.out_planes, network.out_strides) == ([256], [8])
    assert features_of(network, torch.randn(2, 3, 32, 32))[0].shape == (2, 256, 4, 4)
    wide = tiny(width=128)
    assert tuple(wide.conv1.weight.shape) == (128, 3, 7, 7)
    assert wide.conv1.weight.std().item() == pytest.approx((2 / (128 * 49)) ** 0.5, rel=0.05)


def test_input_channels_and_rates_reach_the_layers() -> None:
    assert tiny(input_channel=1).conv1.in_channels == 1
    rates = [m.drop_prob for m in tiny(drop_path_rate=0.3).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3])
    vit = build("vit_tiny_patch16_224", img_size=32, dropout=0.1, attention_dropout=0.2, drop_path=0.3, qkv_bias=False)
    block = vit.get_submodule("blocks.11")
    assert (vit.pos_drop.p, block.attn.proj_drop.p, block.mlp.drop1.p, block.attn.attn_drop.p) == (0.1, 0.1, 0.1, 0.2)
    assert block.drop_path1.drop_prob == pytest.approx(0.3)
    assert block.attn.qkv.bias is None
    scaled = meta("convnext_tiny", {"layer_scale_init_value": 0.0})
    assert not any("gamma" in name for name, _ in scaled.named_parameters())


def test_channels_of_a_narrow_mobilenetv2_are_rounded() -> None:
    def narrowest(**kwargs: Any) -> int:
        return int(meta("mobilenetv2", {"width_mult": 0.5, **kwargs}).get_submodule("blocks.1.0.conv_pwl").weight.shape[0])

    assert (narrowest(), narrowest(round_nearest=1)) == (16, 12)


def test_dropout_of_mobilenetv3_acts_on_the_feature() -> None:
    network = build("mobilenetv3", mode="small", dropout=0.5).train()
    zeros = (features_of(network, torch.randn(4, 3, 32, 32))[0] == 0).float().mean()
    assert 0.4 < zeros < 0.6


def test_norms_are_converted_before_weights_are_initialized() -> None:
    seen: list[str] = []

    def normalize(module: nn.Module) -> nn.Module:
        seen.append("norm")
        return module

    def initializer(module: nn.Module) -> None:
        seen.append("init")
        nn.init.constant_(module.conv1.weight, 0.25)

    network = tiny(normalize=normalize, initializer=initializer, frozen_layers=[0])
    assert seen == ["norm", "init"]
    assert network.conv1.weight.unique().tolist() == [0.25]


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    image = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        network = tiny(grad_checkpointing=checkpointing)
        features_of(network, image)[0].square().sum().backward()
        gradients.append(network.conv1.weight.grad)
    assert network.grad_checkpointing is True
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet18", {"out_layers": [5]}, r"out_layers: \[5\] is not a choice from the stages .* 0, 1, 2, 3, 4"),
        ("resnet18", {"out_layers": []}, r"out_layers: \[\] is not a choice"),
        ("resnet18", {"out_layers": [4, 2]}, r"\[4, 2\]: list every stage once, from the first to the last"),
        ("resnet18", {"out_strides": [3]}, r"out_strides: \[3\] .* 2, 4, 8, 16, 32"),
        ("resnet18", {"out_layers": [4], "out_strides": [16]}, r"have the strides \[32\], out_strides is \[16\]"),
        ("convnext_tiny", {"out_layers": [0]}, r"\[0\] is not a choice from the stages of this network, 1, 2, 3, 4"),
        ("timm", {"model_name": "vit_tiny_patch16_224", "out_strides": [16]}, r"\[16\] does not single out stages"),
        ("mobilenetv2", {"c4_output": True, "out_strides": [32]}, r"c4_output: true means out_strides: \[16, 32\]"),
        ("mobilenetv2", {"width_mult": 0.0}, "width_mult: got 0.0"),
        ("resnet18", {"frozen_layers": [1, 7]}, r"frozen_layers: got \[7\]"),
        ("resnet18", {"stem": "small", "deep_stem": True}, "stem: small is a single convolution"),
        ("resnet_custom", {"block": "basic", "layers": [2, 2, 2]}, r"layers: got \[2, 2, 2\]"),
        ("resnet_custom", {"block": "basic", "layers": [1, 1, 1, 1], "width": 15}, "width: got 15"),
        ("vit_base_patch16_224", {"img_size": 225}, "img_size: got 225"),
        ("swin_tiny", {"num_heads": [3, 6]}, r"num_heads: got \[3, 6\]"),
        ("swin_tiny", {"num_heads": [3, 6, 12, 25]}, r"must divide the channels of the stages, \[96, 192, 384, 768\]"),
        ("timm", {"model_name": "resnet5"}, "timm has no network 'resnet5'. Did you mean 'resnet5.*'"),
        ("timm", {"model_name": "resnet10t", "momentun": 1}, "resnet10t cannot be built with kwargs .*momentun"),
        ("timm", {"model_name": "resnet10t", "num_classes": 5}, "num_classes: the classifier is the head's"),
        ("timm", {"model_name": "resnet10t.nobody"}, "resnet10t.nobody cannot be built: Invalid pretrained tag"),
        ("timm", {"model_name": "vgg11", "grad_checkpointing": True}, "grad_checkpointing: VGG has none"),
    ],
)
def test_what_cannot_be_built_is_explained(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message), torch.device("meta"):
        BACKBONES.get(name)(**kwargs)


def test_an_image_of_another_size_is_explained() -> None:
    network = meta("swin_tiny", {})
    with pytest.raises(UserError, match=facts("224x224", "64x96", "img_size")):
        features_of(network, torch.empty(1, 3, 64, 96, device="meta"))


def test_weights_that_cannot_be_had_are_explained() -> None:
    with pytest.raises(UserError, match=facts("resnet200", "pretrained")), torch.device("meta"):
        build("timm", model_name="resnet200", pretrained=True)


def test_any_timm_network_can_be_adapted_by_hand() -> None:
    network = as_backbone(timm.create_model("resnet10t", num_classes=0))
    assert network.out_planes == [512]
    assert features_of(network, torch.randn(2, 3, 32, 32))[0].shape == (2, 512, 1, 1)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_coatnet", "mixer_s32_224"])
def test_a_timm_network_for_one_size_is_built_for_that_of_the_images(name: str) -> None:
    torch.manual_seed(0)
    derived = timm_network(model_name=name, image_size=(64, 96))
    torch.manual_seed(0)
    written = timm_network(model_name=name, img_size=[64, 96])
    for made, expected in zip(derived.state_dict().values(), written.state_dict().values(), strict=True):
        assert torch.equal(made, expected)
    assert derived({"image": torch.randn(2, 3, 64, 96)})["features"][0].shape[2:] == (1, 1)


@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "xcit_nano_12_p8_224"])
def test_a_timm_network_for_any_size_stays_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    derived = timm_network(model_name=name, image_size=(64, 64)).state_dict()
    torch.manual_seed(0)
    plain = timm_network(model_name=name).state_dict()
    assert all(torch.equal(derived[key], value) for key, value in plain.items())


def test_a_timm_network_for_its_own_size_alone() -> None:
    with pytest.raises(UserError, match=facts("efficientformer_l1", "64 x 64", "224 x 224", "transforms")):
        timm_network(model_name="efficientformer_l1", image_size=(64, 64))
    with pytest.raises(UserError, match=facts("nowhere")):  # not taken for a matter of the size
        timm_network(model_name="vit_tiny_patch16_224", image_size=(64, 64), nowhere=1)
