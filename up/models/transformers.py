"""Swin Transformer, ViT and DeiT. CSWin, which timm has not, is in ``cswin``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from up.errors import UserError
from up.models.adapter import Backbone, Channels, Common, Count, Rate, Variant, as_backbone, finished, published, with_stages


def swin(
    *,
    embed_dim: Count,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: Count,
    pretrain_img_size: Count,
    img_size: int | Sequence[int] | None = None,
    drop_path_rate: Rate = 0.1,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """Swin Transformer (Liu et al. 2021, arXiv 2103.14030): image to a normalized map (B, 8 * embed_dim, H/32, W/32).

    ``img_size``: the side of the images, or (height, width), if it is not ``pretrain_img_size``; attention masks are
    built for it. Windows are padded if they do not fit, and smaller if the map is. Raises ``UserError`` for images of
    another size, sizes that 4 does not divide, and stages that do not exist.
    """
    model = SwinTransformer(
        img_size=_checked_size(pretrain_img_size if img_size is None else img_size, patch=4),
        in_chans=input_channel,
        num_classes=0,
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=_checked_heads(embed_dim, depths, num_heads),
        window_size=window_size,
        drop_path_rate=drop_path_rate,
    )
    return with_stages(as_backbone(model, channels=input_channel), **common)


def vit(
    *,
    patch_size: Count,
    embed_dim: Count,
    depth: Count,
    num_heads: Count,
    variant: Variant = "up",
    img_size: int | Sequence[int] = 224,
    drop_path: Rate = 0.0,
    dropout: Rate = 0.0,
    attention_dropout: Rate = 0.0,
    qkv_bias: bool = True,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """ViT (Dosovitskiy et al. 2021, arXiv 2010.11929): image to tokens (B, 1 + N, embed_dim).

    The tokens are normalized, the class token first, N = H * W / patch_size^2.
    ``variant``: ``up`` computes GELU by its tanh formula and has LayerNorm's eps at 1e-5, as UP's networks and weights;
    ``timm`` has GELU exactly and 1e-6, as the weights of timm, torchvision and DeiT (features differ by about 1e-4).
    ``img_size``: the side of the images, or (height, width). ``dropout`` acts after the position embedding and every
    dense layer but those of queries, keys and values (appendix B.1 of the paper).
    Raises ``UserError`` for images of another size and for sizes that the patch does not divide.
    """
    model = VisionTransformer(
        img_size=_checked_size(img_size, patch_size),
        patch_size=patch_size,
        in_chans=input_channel,
        num_classes=0,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        qkv_bias=qkv_bias,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        attn_drop_rate=attention_dropout,
        drop_path_rate=drop_path,
        act_layer=partial(nn.GELU, approximate="tanh" if variant == "up" else "none"),
        norm_layer=partial(nn.LayerNorm, eps=1e-5 if variant == "up" else 1e-6),
    )
    return finished(as_backbone(model, channels=input_channel, variant=variant), **common)


def _checked_size(img_size: int | Sequence[int], patch: int) -> tuple[int, int]:
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or any(side < patch or side % patch for side in sides):
        raise UserError(got=img_size, expected=f"one or two multiples of the patch, {patch} pixels", key="img_size")
    return sides[0], sides[1]


def _checked_heads(embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> tuple[int, ...]:
    if len(num_heads) != len(depths):
        raise UserError(got=list(num_heads), expected=f"as many numbers as depths: {list(depths)}", key="num_heads")
    dims = [embed_dim * 2**stage for stage in range(len(depths))]
    if any(heads < 1 or dim % heads for dim, heads in zip(dims, num_heads, strict=True)):
        raise UserError(f"{list(num_heads)} must divide the channels of the stages, {dims}.", key="num_heads")
    return tuple(num_heads)


def _swin(embed_dim: int, depth: int, heads: int, size: int) -> dict[str, object]:
    return {
        "embed_dim": embed_dim,
        "depths": (2, 2, depth, 2),
        "num_heads": tuple(heads * 2**stage for stage in range(4)),
        "window_size": size // 32,
        "pretrain_img_size": size,
    }


def _vit(patch_size: int, embed_dim: int, depth: int, num_heads: int) -> dict[str, object]:
    return {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}


_TINY, _SMALL, _BASE, _LARGE = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16)
_384 = {"img_size": 384}

swin_tiny = published(swin, "Swin-T, 28.3 M parameters.", defaults=_swin(96, 6, 3, 224))
swin_small = published(swin, "Swin-S, 49.6 M parameters.", defaults=_swin(96, 18, 3, 224))
swin_base_224 = published(swin, "Swin-B, 87.8 M parameters.", defaults=_swin(128, 18, 4, 224))
swin_base_384 = published(swin, "Swin-B for 384 pixels, 87.9 M parameters.", defaults=_swin(128, 18, 4, 384))
swin_large_224 = published(swin, "Swin-L, 196.5 M parameters.", defaults=_swin(192, 18, 6, 224))
swin_large_384 = published(swin, "Swin-L for 384 pixels, 196.7 M parameters.", defaults=_swin(192, 18, 6, 384))

vit_tiny_patch16_224 = published(vit, "ViT-Ti/16, 5.7 M parameters.", _vit(16, *_TINY))
vit_small_patch16_224 = published(vit, "ViT-S/16, 22.1 M parameters.", _vit(16, *_SMALL))
vit_base_patch16_224 = published(vit, "ViT-B/16, 86.6 M parameters.", _vit(16, *_BASE))
vit_base_patch16_384 = published(vit, "ViT-B/16 for 384 pixels, 86.9 M parameters.", _vit(16, *_BASE), _384)
vit_base_patch32_224 = published(vit, "ViT-B/32, 88.2 M parameters.", _vit(32, *_BASE))
vit_large_patch16_224 = published(vit, "ViT-L/16, 304.3 M parameters.", _vit(16, *_LARGE))
vit_large_patch16_384 = published(vit, "ViT-L/16 for 384 pixels, 304.7 M parameters.", _vit(16, *_LARGE), _384)
vit_huge_patch14_224 = published(vit, "ViT-H/14, 632.0 M parameters.", _vit(14, 1280, 32, 16))
deit_tiny_patch16_224 = published(vit, "DeiT-Ti, 5.7 M parameters (arXiv 2012.12877).", _vit(16, *_TINY))
deit_small_patch16_224 = published(vit, "DeiT-S, 22.1 M parameters (arXiv 2012.12877).", _vit(16, *_SMALL))
deit_base_patch16_224 = published(vit, "DeiT-B, 86.6 M parameters (arXiv 2012.12877).", _vit(16, *_BASE))
deit_base_patch16_384 = published(vit, "DeiT-B for 384 pixels, 86.9 M parameters (arXiv 2012.12877).", _vit(16, *_BASE), _384)
