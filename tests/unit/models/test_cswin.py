from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from tests.harness.facts import facts
from tests.harness.nets import meta_device
from up.errors import UserError
from up.models.backbones import BACKBONES
from up.models.cswin import CSWinBlock, StripeAttention, cswin, from_stripes, to_stripes

torch.set_num_threads(2)

SMALL: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4]}


def small(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return cswin(**{**SMALL, **kwargs})


def feature_of(network: nn.Module, image: Tensor) -> Tensor:
    (feature,) = network({"image": image})["features"]
    return feature


def test_stripes_are_the_columns_of_the_map():
    x = torch.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    stripes = to_stripes(x, 4, 2)
    assert stripes.shape == (6, 4, 2, 1)
    assert stripes[1, :, :, 0].tolist() == [[2, 3], [8, 9], [14, 15], [20, 21]]
    assert torch.equal(from_stripes(stripes, 4, 6), x)


@pytest.mark.parametrize("direction", ["vertical", "horizontal", "whole"])
def test_attention_equals_masked_attention_over_the_whole_map(direction):
    torch.manual_seed(0)
    height, width, dim, heads, split = 4, 6, 8, 2, 2
    attention = StripeAttention(dim=dim, num_heads=heads, split_size=split, direction=direction)
    q, k, v = torch.randn(3, 2, height, width, dim)

    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    stripe = {"vertical": columns // split, "horizontal": rows // split, "whole": 0 * rows}[direction].flatten()
    together = stripe[:, None] == stripe[None, :]
    expected = torch.empty(2, height * width, dim)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        scores = q.flatten(1, 2)[..., part] @ k.flatten(1, 2)[..., part].transpose(1, 2) / (dim // heads) ** 0.5
        expected[..., part] = scores.masked_fill(~together, float("-inf")).softmax(-1) @ v.flatten(1, 2)[..., part]
    for number in stripe.unique():  # the convolution sees zeros beyond the border of a stripe
        inside = (stripe == number).reshape(height, width, 1)
        encoding = attention.get_v((v * inside).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        expected += (encoding * inside).flatten(1, 2)
    torch.testing.assert_close(attention(q, k, v).flatten(1, 2), expected)


def test_a_block_sees_a_cross():
    torch.manual_seed(0)
    block = CSWinBlock(dim=8, num_heads=2, split_size=2, drop_path=0.0)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    block(x)[0, 2, 4].sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, :] = True
    expected[:, 4:6] = True
    assert torch.equal(reached, expected)


def test_the_last_stage_sees_the_whole_map():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 5, 8, requires_grad=True)
    CSWinBlock(dim=8, num_heads=2, split_size=None, drop_path=0.0)(x)[0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 64), (224, 96)])
def test_feature_is_a_normalized_map(height, width):
    network = small().eval()
    feature = feature_of(network, torch.randn(2, 3, height, width))
    assert feature.shape == (2, 64, height // 32, width // 32)
    assert (network.out_planes, network.out_strides) == ([64], [32])
    assert feature.mean(1).abs().max() < 1e-5
    assert feature.std(1, correction=0).mean().item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("size", "split_size", "problem"),
    [
        (224, [1, 2, 7, 7], None),
        (384, [1, 2, 12, 12], None),
        (240, [1, 2, 7, 7], "240x240 pixels. Resize them to multiples of 32"),
        (256, [1, 2, 7, 7], "256x256 pixels, so stage 3 has maps with a side of 16, which stripes of 7 do not divide"),
    ],
)
def test_stripes_must_divide_the_maps(size, split_size, problem):
    with meta_device():
        network = small(split_size=split_size)
        image = torch.empty(1, 3, size, size)
        if problem is None:
            assert feature_of(network, image).shape == (1, 64, size // 32, size // 32)
            return
        with pytest.raises(UserError, match=problem):
            feature_of(network, image)


def test_split_sizes_must_be_four():
    with pytest.raises(UserError, match=facts("split_size", "[1", "2", "7]")):
        small(split_size=[1, 2, 7])


def test_stochastic_depth_grows_linearly():
    rates = [module.drop_prob for module in small(drop_path_rate=0.4).modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_tensors_are_named_as_in_the_authors_files():
    keys = small().state_dict().keys()
    assert {"stage1_conv_embed.0.weight", "stage1_conv_embed.2.weight", "merge1.conv.weight", "merge3.norm.bias"} < keys
    assert {"stage3.1.attns.1.get_v.weight", "stage4.0.mlp.fc2.bias", "norm.weight"} < keys
    assert "stage4.0.attns.1.get_v.weight" not in keys
    assert tuple(small().state_dict()["stage3.0.qkv.weight"].shape) == (96, 32)


def test_linear_layers_start_small():
    network = small(embed_dim=32)
    assert network.stage4[0].qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.stage4[0].qkv.bias.abs().max() == 0


def test_gradient_checkpointing_gives_the_same_gradients():
    image = torch.randn(2, 3, 32, 32)
    plain, frugal = small(), small(grad_checkpointing=True)
    for network in (plain, frugal):
        feature_of(network, image).square().mean(0).sum().backward()
    assert frugal.grad_checkpointing is True
    for (name, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_copies_and_channels_last_compute_the_same():
    network = small().eval()
    image = torch.randn(2, 3, 64, 64)
    expected = feature_of(network, image)
    twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(feature_of(twin, image.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.integration
def test_exported_network_takes_any_batch_size():
    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small(depths=(1, 1, 1, 1))

        def forward(self, image: Tensor) -> Tensor:
            return feature_of(self.network, image)

    plain = Exported().eval()
    program = torch.export.export(plain, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    image = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(image), plain(image))


@pytest.mark.parametrize("name", ["CSWin_96_24322_base_384"])
def test_variants_for_384_pixels_divide_their_maps(name: str) -> None:
    with meta_device(), torch.no_grad():
        network = BACKBONES.get(name)().eval()
        assert network.split_size == (1, 2, 12, 12)
        assert feature_of(network, torch.empty(1, 3, 384, 384)).shape[2:] == (12, 12)
        wide = BACKBONES.get(name.replace("384", "224"))().eval()
    assert wide.split_size == (1, 2, 7, 7)
    assert [part.shape for part in wide.parameters()] == [part.shape for part in network.parameters()]
