"""RegNet and ConvNeXt."""

from __future__ import annotations

from collections.abc import Sequence

import timm
from timm.models.convnext import ConvNeXt
from torch import nn

from up.models.adapter import Backbone, Channels, Common, Rate, as_backbone, published, with_stages


def regnet(*, model_name: str, drop_path_rate: Rate = 0.0, input_channel: Channels = 3, **common: Common) -> Backbone:
    """RegNet (Radosavovic et al. 2020, arXiv 2003.13678): image to a map (B, planes, H/32, W/32).

    X are plain residual bottlenecks with grouped convolutions, Y have squeeze-excite too.
    Raises ``UserError`` for stages that do not exist.
    """
    model = timm.create_model(model_name, num_classes=0, in_chans=input_channel, drop_path_rate=drop_path_rate)
    return with_stages(as_backbone(model, channels=input_channel), **common)


def convnext(
    *,
    depths: Sequence[int],
    dims: Sequence[int],
    layer_scale_init_value: float | None = 1e-6,
    drop_path_rate: Rate = 0.0,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """ConvNeXt (Liu et al. 2022, arXiv 2201.03545): image to a map (B, dims[3], H/32, W/32).

    The map is not normalized: the LayerNorm after pooling belongs to ``convnext_head``. ``layer_scale_init_value``:
    null or 0 leaves out the learned scale of a block. Raises ``UserError`` for stages that do not exist.
    """
    model = ConvNeXt(
        in_chans=input_channel,
        num_classes=0,
        depths=tuple(depths),
        dims=tuple(dims),
        ls_init_value=layer_scale_init_value or None,
        drop_path_rate=drop_path_rate,
    )
    model.head.norm = nn.Identity()
    return with_stages(as_backbone(model, channels=input_channel), **common)


regnetx_200m = published(regnet, "RegNetX-200MF, 2.7 M parameters.", {"model_name": "regnetx_002"})
regnetx_400m = published(regnet, "RegNetX-400MF, 5.2 M parameters.", {"model_name": "regnetx_004"})
regnetx_600m = published(regnet, "RegNetX-600MF, 6.2 M parameters.", {"model_name": "regnetx_006"})
regnetx_800m = published(regnet, "RegNetX-800MF, 7.3 M parameters.", {"model_name": "regnetx_008"})
regnetx_1600m = published(regnet, "RegNetX-1.6GF, 9.2 M parameters.", {"model_name": "regnetx_016"})
regnetx_3200m = published(regnet, "RegNetX-3.2GF, 15.3 M parameters.", {"model_name": "regnetx_032"})
regnetx_4000m = published(regnet, "RegNetX-4.0GF, 22.1 M parameters.", {"model_name": "regnetx_040"})
regnetx_6400m = published(regnet, "RegNetX-6.4GF, 26.2 M parameters.", {"model_name": "regnetx_064"})
regnetx_8000m = published(regnet, "RegNetX-8.0GF, 39.6 M parameters.", {"model_name": "regnetx_080"})
regnetx_12000m = published(regnet, "RegNetX-12GF, 46.1 M parameters.", {"model_name": "regnetx_120"})
regnetx_16000m = published(regnet, "RegNetX-16GF, 54.3 M parameters.", {"model_name": "regnetx_160"})
regnetx_32000m = published(regnet, "RegNetX-32GF, 107.8 M parameters.", {"model_name": "regnetx_320"})
regnety_200m = published(regnet, "RegNetY-200MF, 3.2 M parameters.", {"model_name": "regnety_002"})
regnety_400m = published(regnet, "RegNetY-400MF, 4.3 M parameters.", {"model_name": "regnety_004"})
regnety_600m = published(regnet, "RegNetY-600MF, 6.1 M parameters.", {"model_name": "regnety_006"})
regnety_800m = published(regnet, "RegNetY-800MF, 6.3 M parameters.", {"model_name": "regnety_008"})
regnety_1600m = published(regnet, "RegNetY-1.6GF, 11.2 M parameters.", {"model_name": "regnety_016"})
regnety_3200m = published(regnet, "RegNetY-3.2GF, 19.4 M parameters.", {"model_name": "regnety_032"})
regnety_4000m = published(regnet, "RegNetY-4.0GF, 20.6 M parameters.", {"model_name": "regnety_040"})
regnety_6400m = published(regnet, "RegNetY-6.4GF, 30.6 M parameters.", {"model_name": "regnety_064"})
regnety_8000m = published(regnet, "RegNetY-8.0GF, 39.2 M parameters.", {"model_name": "regnety_080"})
regnety_12000m = published(regnet, "RegNetY-12GF, 51.8 M parameters.", {"model_name": "regnety_120"})
regnety_16000m = published(regnet, "RegNetY-16GF, 83.6 M parameters.", {"model_name": "regnety_160"})
regnety_32000m = published(regnet, "RegNetY-32GF, 145.0 M parameters.", {"model_name": "regnety_320"})

convnext_tiny = published(convnext, "ConvNeXt-T, 28.6 M parameters.", {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)})
convnext_small = published(convnext, "ConvNeXt-S, 50.2 M parameters.", {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)})
convnext_base = published(convnext, "ConvNeXt-B, 88.6 M parameters.", {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)})
convnext_large = published(convnext, "ConvNeXt-L, 197.8 M parameters.", {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)})
convnext_xlarge = published(convnext, "ConvNeXt-XL, 350.2 M parameters.", {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)})
