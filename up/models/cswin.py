"""CSWin Transformer (Dong et al. 2022, CVPR, arXiv 2107.00652): self-attention in cross-shaped windows.

Half of the heads attend within vertical stripes of the map and half within horizontal ones, so one block sees a cross.
The stripes grow from stage to stage, and the last stage sees its whole map. Maps are (B, H, W, C) throughout.
Parameters are named as in the authors' files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from up.errors import UserError
from up.models.adapter import Backbone, Channels, Common, Count, Rate, as_backbone, finished, published

Direction = Literal["vertical", "horizontal", "whole"]


def to_stripes(x: Tensor, height: int, width: int) -> Tensor:
    """Cut maps (B, H, W, C) into stripes (B * H/height * W/width, height, width, C)."""
    _, full_height, full_width, channels = x.shape
    x = x.reshape(-1, full_height // height, height, full_width // width, width, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def from_stripes(stripes: Tensor, full_height: int, full_width: int) -> Tensor:
    """Put stripes (B * H/height * W/width, height, width, C) together to maps (B, H, W, C)."""
    _, height, width, channels = stripes.shape
    x = stripes.reshape(-1, full_height // height, full_width // width, height, width, channels)
    return x.transpose(2, 3).reshape(-1, full_height, full_width, channels)


class StripeAttention(nn.Module):
    """Self-attention within stripes, plus a locally enhanced position encoding (sections 3.2 and 3.3).

    ``vertical`` stripes are as high as the map and ``split_size`` wide, ``horizontal`` stripes the reverse; they are
    never larger than the map. The position encoding is a depthwise 3x3 convolution of the values of a stripe.
    """

    def __init__(self, *, dim: int, num_heads: int, split_size: int, direction: Direction) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.split_size = split_size
        self.direction = direction
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within stripes: ``q``, ``k``, ``v`` and the result are (B, H, W, C)."""
        height, width = q.shape[1:3]
        stripe = (
            min(self.split_size, height) if self.direction == "horizontal" else height,
            min(self.split_size, width) if self.direction == "vertical" else width,
        )
        q, k, v = (to_stripes(x, *stripe) for x in (q, k, v))
        encoding = self.get_v(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attended = scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v))
        return from_stripes(attended.transpose(1, 2).reshape(-1, *v.shape[1:]) + encoding, height, width)

    def _heads(self, stripes: Tensor) -> Tensor:
        """(S, h, w, C) -> (S, heads, h * w, C / heads)."""
        _, height, width, channels = stripes.shape
        return stripes.reshape(-1, height * width, self.num_heads, channels // self.num_heads).transpose(1, 2)


class CSWinBlock(nn.Module):
    """Cross-shaped attention and a two-layer perceptron, each with LayerNorm before and a residual around it.

    ``split_size`` None: one attention over the whole map in place of the two half-width ones, as in the last stage.
    """

    def __init__(self, *, dim: int, num_heads: int, split_size: int | None, drop_path: float) -> None:
        super().__init__()
        directions: tuple[Direction, ...] = ("whole",) if split_size is None else ("vertical", "horizontal")
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attns = nn.ModuleList(
            StripeAttention(
                dim=dim // len(directions), num_heads=num_heads // len(directions), split_size=split_size or 0, direction=direction
            )
            for direction in directions
        )
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to the same shape."""
        q, k, v = (part.chunk(len(self.attns), dim=-1) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        attended = [attention(q[i], k[i], v[i]) for i, attention in enumerate(self.attns)]
        x = x + self.drop_path(self.proj(torch.cat(attended, dim=-1)))
        mixed: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return mixed


class Merge(nn.Module):
    """Halve the map and double the channels with a 3x3 convolution: (B, H, W, dim) -> (B, H/2, W/2, 2 * dim)."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalize."""
        merged: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return merged


class ToChannelsLast(nn.Module):
    """Permute (B, C, H, W) to (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Move the channels to the end."""
        return x.permute(0, 2, 3, 1)


class CSWin(nn.Module):
    """The network without classifier, with the attributes and methods of timm's networks that ``as_backbone`` reads."""

    output_fmt = "NHWC"

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        split_size: Sequence[int],
        drop_path_rate: float,
        input_channel: int,
    ) -> None:
        super().__init__()
        self.split_size = tuple(split_size)
        self.num_features = 8 * embed_dim
        self.feature_info = [{"num_chs": embed_dim * 2**i, "reduction": 4 * 2**i, "module": f"stage{i + 1}"} for i in range(4)]
        self.grad_checkpointing = False
        self.stage1_conv_embed = nn.Sequential(
            nn.Conv2d(input_channel, embed_dim, 7, stride=4, padding=2), ToChannelsLast(), nn.LayerNorm(embed_dim)
        )
        # Stochastic depth grows linearly from block to block over the whole network.
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i in range(4):
            if i > 0:
                self.add_module(f"merge{i}", Merge(dim=embed_dim * 2 ** (i - 1)))
            blocks = [
                CSWinBlock(
                    dim=embed_dim * 2**i,
                    num_heads=num_heads[i],
                    split_size=self.split_size[i] if i < 3 else None,
                    drop_path=next(rates),
                )
                for _ in range(depths[i])
            ]
            self.add_module(f"stage{i + 1}", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(self.num_features)
        self.apply(_init_linear)

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to a normalized map (B, H/32, W/32, 8 * embed_dim)."""
        self._check_stripes(image)
        x: Tensor = self.stage1_conv_embed(image)
        for i in range(4):
            if i > 0:
                x = self.get_submodule(f"merge{i}")(x)
            for block in cast("nn.ModuleList", self.get_submodule(f"stage{i + 1}")):
                x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing and self.training else block(x)
        normalized: Tensor = self.norm(x)
        return normalized

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of every block in the backward pass."""
        self.grad_checkpointing = enable

    def _check_stripes(self, image: Tensor) -> None:
        """Raise ``UserError`` for maps that the stripes do not divide."""
        height, width = image.shape[-2:]
        for side in (height, width):
            if side % 32:
                raise UserError(f"CSWin got images of {height}x{width} pixels. Resize them to multiples of 32, such as 224.")
            for i, split in enumerate(self.split_size[:3]):
                length = side // (4 * 2**i)
                if length % min(split, length):
                    raise UserError(
                        f"CSWin got images of {height}x{width} pixels, so stage {i + 1} has maps with a side of {length}, which "
                        f"stripes of {split} do not divide. Resize the images to multiples of 224, or set another split_size "
                        f"than {list(self.split_size)}; [1, 2, 12, 12] is for 384."
                    )


def cswin(
    *,
    embed_dim: Count,
    depths: Sequence[int],
    num_heads: Sequence[int],
    split_size: Sequence[int] = (1, 2, 7, 7),
    drop_path_rate: Rate = 0.0,
    input_channel: Channels = 3,
    **common: Common,
) -> Backbone:
    """CSWin Transformer: image (B, input_channel, H, W) to a normalized map (B, 8 * embed_dim, H/32, W/32).

    ``split_size``: the width of the stripes in each stage (the last attends over its whole map). Stripes must divide the
    maps of an image, as for 224 and its multiples. Raises ``UserError`` for other images.
    """
    if len(split_size) != 4 or min(split_size) < 1:
        raise UserError(got=list(split_size), expected="four widths, one a stage, such as [1, 2, 7, 7]", key="split_size")
    model = CSWin(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        split_size=split_size,
        drop_path_rate=drop_path_rate,
        input_channel=input_channel,
    )
    return finished(as_backbone(model, channels=input_channel), **common)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


_TINY: dict[str, object] = {"embed_dim": 64, "depths": (1, 2, 21, 1), "num_heads": (2, 4, 8, 16)}
_SMALL: dict[str, object] = {"embed_dim": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)}
_BASE: dict[str, object] = {"embed_dim": 96, "depths": (2, 4, 32, 2), "num_heads": (4, 8, 16, 32)}
_LARGE: dict[str, object] = {"embed_dim": 144, "depths": (2, 4, 32, 2), "num_heads": (6, 12, 24, 24)}
_OF_384: dict[str, object] = {"split_size": (1, 2, 12, 12)}

CSWin_64_12211_tiny_224 = published(cswin, "CSWin-T, 22.3 M parameters.", _TINY)
CSWin_64_24322_small_224 = published(cswin, "CSWin-S, 34.6 M parameters.", _SMALL)
CSWin_96_24322_base_224 = published(cswin, "CSWin-B, 77.4 M parameters.", _BASE)
CSWin_96_24322_base_384 = published(cswin, "CSWin-B for images of 384 pixels, 77.4 M parameters.", _BASE, _OF_384)
CSWin_144_24322_large_224 = published(cswin, "CSWin-L, 173 M parameters.", _LARGE)
CSWin_144_24322_large_384 = published(cswin, "CSWin-L for images of 384 pixels, 173 M parameters.", _LARGE, _OF_384)
