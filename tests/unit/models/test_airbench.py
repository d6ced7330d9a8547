"""The whitening layer against the covariance of patches, and the network of airbench."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from up.models.airbench import Airbench, Whitening
from up.tasks.cls.model.heads import ScaledLinear


def images(number: int = 64) -> torch.Tensor:
    """Smooth noise, whose neighbours are correlated as those of photographs are."""
    draw = torch.Generator().manual_seed(0)
    return F.avg_pool2d(torch.randn(number, 3, 33, 33, generator=draw), 2, stride=1)


def test_whitened_patches_are_uncorrelated() -> None:
    """With eps 0 the first half of the outputs has the identity as its second moments, on the images that it is computed from."""
    layer = Whitening(3, eps=0.0)
    layer.fit(images())
    outputs = layer(images())[:, :12].transpose(0, 1).flatten(1).double()
    moments = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(moments, torch.eye(12, dtype=torch.float64), atol=2e-4, rtol=0)


def test_the_second_half_is_the_negative_of_the_first() -> None:
    layer = Whitening(3, eps=5e-4)
    layer.fit(images())
    assert torch.equal(layer.weight[12:], -layer.weight[:12])


def test_the_largest_direction_comes_first_and_eps_damps_the_smallest() -> None:
    plain, damped = Whitening(3, eps=0.0), Whitening(3, eps=0.1)
    for layer in (plain, damped):
        layer.fit(images())
    norms = plain.weight[:12].flatten(1).norm(dim=1)
    assert torch.equal(norms, norms.sort().values)  # one over the root of the eigenvalue
    assert (damped.weight[11].norm() / norms[11]) < (damped.weight[0].norm() / norms[0]) < 1


def test_the_weight_does_not_train_and_is_saved() -> None:
    net = Airbench(widths=(8, 8, 8))
    assert "whiten.weight" in net.state_dict()
    assert "whiten.weight" not in dict(net.named_parameters())
    assert "whiten.bias" in dict(net.named_parameters())


def test_shapes_and_parameters() -> None:
    """24 whitening filters; 64, 256 and 256 channels: 1.97 M weights with the head, as airbench94."""
    net = Airbench()
    record = {"image": torch.randn(2, 3, 32, 32)}
    assert [tuple(feature.shape) for feature in net(record)["features"]] == [(2, 256)]
    convs = sum(module.weight.numel() for module in net.modules() if isinstance(module, nn.Conv2d))
    assert convs == 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)


def test_convolutions_begin_as_identities() -> None:
    conv = Airbench(widths=(32, 32, 32)).groups[0].conv1
    maps = torch.randn(1, 24, 8, 8)
    torch.testing.assert_close(conv(maps)[:, :24], maps)


def test_logits_are_divided_by_the_width() -> None:
    layer, x = ScaledLinear(16, 4), torch.randn(3, 16)
    torch.testing.assert_close(layer(x), x @ layer.weight.T / 16)
    torch.testing.assert_close(layer.weight.std(), torch.tensor(1.0))
