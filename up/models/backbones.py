"""Table of backbones: every ``type`` of a backbone in ``net:``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from up.config.contract import Attribute, Contract
from up.registry import Registry

if TYPE_CHECKING:
    from up.models.adapter import Backbone

_RESNETS = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnet18_D resnet34_D resnet50_D resnet101_D resnet152_D "
    "resnet_custom resnet_custom_D"
)
_MOBILE = (
    "mobilenetv2 mobilenetv3 "
    "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 "
    "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7"
)
_CONVNETS = (
    "regnetx_200m regnetx_400m regnetx_600m regnetx_800m regnetx_1600m regnetx_3200m "
    "regnetx_4000m regnetx_6400m regnetx_8000m regnetx_12000m regnetx_16000m regnetx_32000m "
    "regnety_200m regnety_400m regnety_600m regnety_800m regnety_1600m regnety_3200m "
    "regnety_4000m regnety_6400m regnety_8000m regnety_12000m regnety_16000m regnety_32000m "
    "convnext_tiny convnext_small convnext_base convnext_large convnext_xlarge"
)
_TRANSFORMERS = (
    "swin_tiny swin_small swin_base_224 swin_base_384 swin_large_224 swin_large_384 "
    "vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 vit_base_patch16_384 vit_base_patch32_224 "
    "vit_large_patch16_224 vit_large_patch16_384 vit_huge_patch14_224 "
    "deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384"
)
_CSWIN = (
    "CSWin_64_12211_tiny_224 CSWin_64_24322_small_224 CSWin_96_24322_base_224 "
    "CSWin_96_24322_base_384 CSWin_144_24322_large_224 CSWin_144_24322_large_384"
)


def _are_planes(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(planes, int) and planes > 0 for planes in value)


def _returns(backbone: Backbone, returned: object) -> str | None:
    """Check the returned features, one for each entry of ``out_planes``; returns the end of an error message."""
    features = returned.get("features") if isinstance(returned, Mapping) else None
    if not isinstance(features, list | tuple) or not all(isinstance(feature, Tensor) for feature in features):
        has = f"{{'features': a {type(features).__name__}}}" if features is not None else f"a {type(returned).__name__}"
        return f'returned {has}, expected a dict with a list of tensors. Write `return {{"features": [x]}}`'
    channels = [feature.shape[1] if feature.ndim == 4 else feature.shape[-1] for feature in features]
    if channels != list(backbone.out_planes):
        planes = list(backbone.out_planes)
        return f"returned features of {channels} channels, but out_planes is {planes}. Set self.out_planes = {channels}"
    return None


BACKBONES = Registry(
    "backbone",
    {
        **{name: f"up.models.resnets:{name}" for name in _RESNETS.split()},
        **{name: f"up.models.mobile:{name}" for name in _MOBILE.split()},
        **{name: f"up.models.convnets:{name}" for name in _CONVNETS.split()},
        **{name: f"up.models.transformers:{name}" for name in _TRANSFORMERS.split()},
        **{name: f"up.models.cswin:{name}" for name in _CSWIN.split()},
        "airbench": "up.models.airbench:Airbench",
        "cell_network": "up.models.cells:cell_network",
        "cell_supernet": "up.models.supernet:cell_supernet",
        "timm": "up.models.timm_network:timm_network",
    },
    contract=Contract(
        "docs/add_a_part.md",
        base=lambda: (nn.Module,),
        attributes=(Attribute("out_planes", "a list of whole numbers, the channels of each feature", _are_planes),),
        returns=_returns,
    ),
)
