"""Networks of inverted residuals: MobileNetV2, MobileNetV3, EfficientNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import timm
import torch.nn.functional as F
from timm.layers import get_act_layer
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from up.config.argument import Positive
from up.config.checked import checked
from up.errors import UserError
from up.models.adapter import Backbone, Channels, Common, Count, Rate, Variant, as_backbone, published, with_stages

# timm's notation, one string a stage: ds/ir/cn block, r repeats, k kernel, s stride, e expansion, c channels,
# se squeeze-excite, nre ReLU instead of the network's activation.
_V2 = (  # table 2 of the paper, after its first stage
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
_V2_FIRST = {"up": "ir_r1_k3_s1_e1_c16", "timm": "ds_r1_k3_s1_c16"}
_V3: dict[str, tuple[tuple[str, ...], ...]] = {
    "large": (  # table 1
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k3_s2_e4_c24_nre", "ir_r1_k3_s1_e3_c24_nre"),
        ("ir_r3_k5_s2_e3_c40_se0.25_nre",),
        ("ir_r1_k3_s2_e6_c80", "ir_r1_k3_s1_e2.5_c80", "ir_r2_k3_s1_e2.3_c80"),
        ("ir_r2_k3_s1_e6_c112_se0.25",),
        ("ir_r3_k5_s2_e6_c160_se0.25",),
        ("cn_r1_k1_s1_c960",),
    ),
    "small": (  # table 2
        ("ds_r1_k3_s2_e1_c16_se0.25_nre",),
        ("ir_r1_k3_s2_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"),
        ("ir_r1_k5_s2_e4_c40_se0.25", "ir_r2_k5_s1_e6_c40_se0.25"),
        ("ir_r2_k5_s1_e3_c48_se0.25",),
        ("ir_r3_k5_s2_e6_c96_se0.25",),
        ("cn_r1_k1_s1_c576",),
    ),
}


class PlainSqueeze(nn.Module):
    """Squeeze-excite of two linear layers without biases and a quarter of the channels: (B, C, H, W) to the same.

    ``act`` is the activation after it, if the block has none before.
    """

    def __init__(self, channels: int, **_: object) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv_expand = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.act: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels by weights computed from their means."""
        squeezed = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        scaled: Tensor = self.act(x * F.hardsigmoid(self.conv_expand(squeezed)))
        return scaled


@checked
def mobilenetv2(
    *,
    variant: Variant = "up",
    width_mult: Positive = 1.0,
    round_nearest: Count = 8,
    drop_path_rate: Rate = 0.0,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): image to a map (B, 1280, H/32, W/32).

    ``variant``: in ``up`` the first block has a 1x1 convolution before its depthwise one, as UP's networks and weights;
    in ``timm`` it has none, as in the paper and the weights of timm and torchvision.
    ``width_mult`` scales all channels, the last 1280 only upwards, to multiples of ``round_nearest``. ``c4_output`` adds
    the map of stride 16 before the last. Raises ``UserError`` for stages that do not exist.
    """
    channels = partial(round_channels, multiplier=width_mult, divisor=round_nearest)
    model = EfficientNet(
        decode_arch_def([[stage] for stage in (_V2_FIRST[variant], *_V2)]),
        num_classes=0,
        num_features=max(1280, channels(1280)),
        in_chans=input_channel,
        round_chs_fn=channels,
        act_layer=nn.ReLU6,
        drop_path_rate=drop_path_rate,
    )
    return _with_stages(as_backbone(model, channels=input_channel, variant=variant), **common)


@checked
def mobilenetv3(
    *,
    mode: Literal["large", "small"] = "large",
    variant: Variant = "up",
    width_mult: Positive = 1.0,
    dropout: Rate = 0.0,
    drop_path_rate: Rate = 0.0,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """MobileNetV3 (Howard et al. 2019, arXiv 1905.02244): image to a feature (B, 1280, 1, 1).

    ``variant``: in ``up`` squeeze-excite has no biases, a quarter of the channels exactly, and comes before the
    activation of an inverted residual, as in UP's networks and weights; ``timm`` is the network of timm's and
    torchvision's weights.
    The last convolution works on the pooled map. ``dropout`` is applied to the feature. ``c4_output`` adds the map of
    stride 16 before it. ``mode: small`` ends in 1280 channels too, as in the first version of the paper and in older
    configs (the final version has 1024: ``timm`` with ``mobilenetv3_small_100``). Raises ``UserError`` for stages that
    do not exist.
    """
    channels = partial(round_channels, multiplier=width_mult)
    model = MobileNetV3(
        decode_arch_def([list(stage) for stage in _V3[mode]]),
        num_classes=0,
        num_features=max(1280, channels(1280)),
        in_chans=input_channel,
        round_chs_fn=channels,
        fix_stem=width_mult < 0.75,  # as the published narrow ones have it
        act_layer=get_act_layer("hard_swish"),
        se_layer=PlainSqueeze
        if variant == "up"
        else partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels),
        drop_rate=dropout,
        drop_path_rate=drop_path_rate,
    )
    if variant == "up":
        _squeeze_first(model)
    return _with_stages(as_backbone(model, channels=input_channel, pooled=True, variant=variant), **common)


def efficientnet(
    *, model_name: str, variant: Variant = "up", drop_path_rate: Rate = 0.0, input_channel: Channels = 3, **common: Common
) -> Backbone:
    """EfficientNet (Tan and Le 2019, arXiv 1905.11946): image to a map (B, 1280 .. 2560, H/32, W/32).

    ``variant``: ``up`` pads as TensorFlow does (SAME) and has BatchNorm's eps at 1e-3, as the authors' network, UP's and
    timm's ``tf_efficientnet_*``; ``timm`` pads evenly and has 1e-5, as timm's ``efficientnet_*`` and torchvision's.
    Raises ``UserError`` for stages that do not exist.
    """
    name = f"tf_{model_name}" if variant == "up" else model_name
    model = timm.create_model(name, num_classes=0, in_chans=input_channel, drop_path_rate=drop_path_rate)
    return with_stages(as_backbone(model, channels=input_channel, variant=variant), **common)


def _with_stages(
    backbone: Backbone,
    *,
    c4_output: bool = False,
    out_layers: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    **common: Common,
) -> Backbone:
    """Finish a backbone; ``c4_output`` asks for the map of stride 16 beside the last one."""
    if c4_output and (out_layers is not None or list(out_strides or (16, 32)) != [16, 32]):
        raise UserError("true means out_strides: [16, 32]; leave it out if stages are chosen.", key="c4_output")
    return with_stages(backbone, out_layers=out_layers, out_strides=(16, 32) if c4_output else out_strides, **common)


def _squeeze_first(model: nn.Module) -> None:
    """Move the activation of every inverted residual from before its squeeze-excite to after it."""
    for block in model.modules():
        if isinstance(block, InvertedResidual) and isinstance(block.se, PlainSqueeze):
            block.se.act, block.bn2.act = cast("nn.Module", block.bn2.act), nn.Identity()


efficientnet_b0 = published(efficientnet, "EfficientNet-B0, 5.3 M parameters, 224 pixels.", {"model_name": "efficientnet_b0"})
efficientnet_b1 = published(efficientnet, "EfficientNet-B1, 7.8 M parameters, 240 pixels.", {"model_name": "efficientnet_b1"})
efficientnet_b2 = published(efficientnet, "EfficientNet-B2, 9.1 M parameters, 260 pixels.", {"model_name": "efficientnet_b2"})
efficientnet_b3 = published(efficientnet, "EfficientNet-B3, 12.2 M parameters, 300 pixels.", {"model_name": "efficientnet_b3"})
efficientnet_b4 = published(efficientnet, "EfficientNet-B4, 19.3 M parameters, 380 pixels.", {"model_name": "efficientnet_b4"})
efficientnet_b5 = published(efficientnet, "EfficientNet-B5, 30.4 M parameters, 456 pixels.", {"model_name": "efficientnet_b5"})
efficientnet_b6 = published(efficientnet, "EfficientNet-B6, 43.0 M parameters, 528 pixels.", {"model_name": "efficientnet_b6"})
efficientnet_b7 = published(efficientnet, "EfficientNet-B7, 66.3 M parameters, 600 pixels.", {"model_name": "efficientnet_b7"})
