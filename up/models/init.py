"""``initializer:`` of a backbone or head: first weights of convolutions and linear layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from up.config.checked import checked
from up.registry import Registry

_SMALL = 0.01  # standard deviation of a new classifier's weights


@torch.no_grad()
def start_small(net: nn.Module, tensors: Collection[str]) -> None:
    """Scale the weights of linear layers among ``tensors`` (names in ``net``) down to a standard deviation of 0.01, biases to 0.

    The features of pretrained networks are of any size. A classifier that starts afresh on them with torch's usual weights can
    have large logits, whose gradients damage the features; with these, the first loss is near ln C for C classes.
    """
    for path, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and f"{path}.weight" in tensors:
            layer.weight.mul_(min(1.0, _SMALL / max(float(layer.weight.std()), _SMALL)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


INITIALIZERS = Registry(
    "initializer",
    {
        "msra": "up.models.init:Msra",
        "xavier": "up.models.init:Xavier",
        "normal": "up.models.init:Normal",
        "constant": "up.models.init:ConstantWeights",
        "constant_bias": "up.models.init:ConstantBias",
        "focal": "up.models.init:Focal",
    },
)


class _Initializer(ABC):
    """Fill weights by ``fill``, set biases to 0, and norms to the identity (weight 1, bias 0).

    Tensors outside of convolutions, linear layers and norms (position embeddings, layer scales) stay as built.
    """

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialize ``module`` in place and return it."""
        for layer in _layers(module):
            self.fill(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for norm in module.modules():
            if isinstance(norm, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
                _identity(norm)
        return module

    @abstractmethod
    def fill(self, weight: Tensor) -> None:
        """Fill one weight: (out, in, height, width) or (out, in)."""


class Msra(_Initializer):
    """He normal: std = sqrt(2 / fan_out), for ReLU (He et al. 2015)."""

    def fill(self, weight: Tensor) -> None:
        """Draw from N(0, 2 / fan_out)."""
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


class Xavier(_Initializer):
    """Glorot: variance gain^2 * 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""

    def __init__(self, *, gain: float = 1.0, distribution: Literal["uniform", "normal"] = "uniform") -> None:
        self.gain = gain
        self.distribution = distribution

    def fill(self, weight: Tensor) -> None:
        """Draw with variance gain^2 * 2 / (fan_in + fan_out)."""
        draw = nn.init.xavier_uniform_ if self.distribution == "uniform" else nn.init.xavier_normal_
        draw(weight, gain=self.gain)


class Normal(_Initializer):
    """Weights from N(0, std^2)."""

    def __init__(self, *, std: float = 0.01) -> None:
        self.std = std

    def fill(self, weight: Tensor) -> None:
        """Draw from N(0, std^2)."""
        nn.init.normal_(weight, std=self.std)


class ConstantWeights(_Initializer):
    """All weights ``val``."""

    def __init__(self, *, val: float = 0.0) -> None:
        self.val = val

    def fill(self, weight: Tensor) -> None:
        """Set to ``val``."""
        nn.init.constant_(weight, self.val)


class ConstantBias:
    """All biases of convolutions and linear layers ``val``; the weights do not change."""

    def __init__(self, *, val: float = 0.0) -> None:
        self.val = val

    def __call__(self, module: nn.Module) -> nn.Module:
        """Set the biases of ``module`` in place and return it."""
        for layer in _layers(module):
            if layer.bias is not None:
                nn.init.constant_(layer.bias, self.val)
        return module


class Focal(Normal):
    """Weights from N(0, std^2) and a last bias for which a sigmoid starts at ``prior_prob`` (Lin et al. 2017, 4.1)."""

    @checked
    def __init__(self, *, prior_prob: Annotated[float, Field(gt=0, lt=1)] = 0.01, std: float = 0.01) -> None:
        super().__init__(std=std)
        self.prior_prob = prior_prob

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialize ``module`` in place and return it; its last layer with a bias is the classifier."""
        super().__call__(module)
        biases = [layer.bias for layer in _layers(module) if layer.bias is not None]
        if biases:
            nn.init.constant_(biases[-1], -math.log((1 - self.prior_prob) / self.prior_prob))
        return module


def _layers(module: nn.Module) -> Iterator[_ConvNd | nn.Linear]:
    return (layer for layer in module.modules() if isinstance(layer, (_ConvNd, nn.Linear)))


def _identity(norm: nn.Module) -> None:
    for tensor, value in ((norm.weight, 1.0), (norm.bias, 0.0)):
        if tensor is not None:
            nn.init.constant_(cast("Tensor", tensor), value)
