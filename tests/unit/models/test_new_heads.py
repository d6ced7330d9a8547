"""The first loss of a new head on pretrained features: near ln C, for every family of backbones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from up.models.adapter import Backbone
from up.models.backbones import BACKBONES
from up.models.convnets import convnext
from up.models.cswin import cswin
from up.models.init import start_small
from up.models.net import Net
from up.models.weights import Weights, load_weights
from up.tasks.cls.model.heads import HEADS

pytestmark = pytest.mark.integration  # networks of every family

CLASSES = 10
SIDE = 32
BOUND = 0.1
DEEP = {"resnet, bottlenecks": 0.2, "regnetx": 0.3, "regnety": 0.3}  # more norms in a row, whose weights here are random


def of(name: str, **kwargs: Any) -> Callable[[], Backbone]:
    return partial(BACKBONES.get(name), **kwargs)


FAMILIES: dict[str, tuple[Callable[[], Backbone], str]] = {
    "resnet": (of("resnet_custom", block="basic", layers=(1, 1, 1, 1)), "base_cls_head"),
    "resnet, bottlenecks": (of("resnet_custom", block="bottleneck", layers=(1, 1, 1, 1)), "base_cls_head"),
    "resnet_D": (of("resnet_custom_D", block="basic", layers=(1, 1, 1, 1)), "base_cls_head"),
    "mobilenetv2": (of("mobilenetv2", width_mult=0.5), "base_cls_head"),
    "mobilenetv3": (of("mobilenetv3", width_mult=0.5), "base_cls_head"),
    "efficientnet": (of("efficientnet_b0"), "base_cls_head"),
    "regnetx": (of("regnetx_200m"), "base_cls_head"),
    "regnety": (of("regnety_200m"), "base_cls_head"),
    "convnext": (partial(convnext, depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), layer_scale_init_value=0.1), "convnext_head"),
    "swin": (of("swin_tiny", img_size=SIDE, embed_dim=24, depths=(1, 1, 1, 1), window_size=4), "base_cls_head"),
    "vit": (of("vit_tiny_patch16_224", img_size=SIDE), "vit_head"),
    "deit": (of("deit_tiny_patch16_224", img_size=SIDE, variant="timm"), "vit_head"),
    "cswin": (partial(cswin, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), split_size=(1, 2, 2, 2)), "base_cls_head"),
    "timm, efficientnet": (of("timm", model_name="efficientnet_lite0"), "base_cls_head"),
    "timm, vit": (of("timm", model_name="test_vit", img_size=SIDE), "base_cls_head"),
}


@cache
def pictures() -> Tensor:
    """Two real photos (2, 3, 427, 640), normalized as for ImageNet."""
    from sklearn.datasets import load_sample_images  # only here: it takes seconds

    pixels = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (pixels - mean) / std


def photos(images: int, seed: int = 1) -> Tensor:
    """Pieces of real photos, half their size."""
    draw = torch.Generator().manual_seed(seed)
    height, width = pictures().shape[2:]
    pieces = []
    for number in range(images):
        top, left = (int(torch.randint(side - 2 * SIDE, (), generator=draw)) for side in (height, width))
        pieces.append(pictures()[number % 2, :, top : top + 2 * SIDE, left : left + 2 * SIDE])
    return nn.functional.avg_pool2d(torch.stack(pieces), 2)


def noise(images: int) -> Tensor:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def as_trained(backbone: Backbone) -> Backbone:
    """Running statistics of real photos, and norms that are not the identity."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all images
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    backbone.train()({"image": photos(64, seed=2)})  # other pieces than those of the loss
    return backbone.eval()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_is_near_that_of_guessing(family: str) -> None:
    torch.manual_seed(0)
    make, head = FAMILIES[family]
    pretrained = as_trained(make())
    planes = pretrained.out_planes[-1]
    theirs = Net([("backbone", pretrained), ("head", HEADS.get(head)(num_classes=1000, in_plane=planes))])
    backbone = make()
    net = Net([("backbone", backbone), ("head", HEADS.get(head)(num_classes=CLASSES, in_plane=planes))])
    report = load_weights(net, Weights("pretrained.pth", theirs.state_dict()), heads={"head": "classifier"})
    assert report.reinitialised == ["head.classifier.weight", "head.classifier.bias"]
    start_small(net, report.reinitialised)
    for images in (noise, photos):
        logits = net.train()({"image": images(20)})["logits"]  # as in the first step
        loss = nn.functional.cross_entropy(logits, torch.arange(20) % CLASSES)
        assert abs(float(loss) - math.log(CLASSES)) < DEEP.get(family, BOUND), (images, float(logits.std()))
