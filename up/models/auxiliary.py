"""Auxiliary classifiers: parts of a network that only training uses (Szegedy et al. 2015, section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from up.errors import UserError

NAME = re.compile(r"\.auxiliary\.")
"""Pattern of the names of their tensors, which files of weights may have or lack."""
_POOL, _CONV = 5, 2  # kernels


class TrainingOnly:
    """Marker of modules that run in training alone: an evaluated or exported network does not have them."""


class AuxiliaryFeatures(TrainingOnly, nn.Sequential):
    """Features (B, ``width``) of an auxiliary classifier, of a map (B, planes, H, W) in the middle of a network.

    Average pooling of 5x5 (of stride 3, or 2 for ImageNet), a 1x1 convolution to 128 channels and a 2x2 one to 768, as in the
    authors' code of DARTS (Liu et al. 2019, appendix A.2); then the mean over the positions. Maps of 8x8 (stride 3) and 7x7
    (stride 2), as in the paper, leave one position. Raises ``UserError`` for a smaller map.
    """

    width = 768

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d(_POOL, stride, count_include_pad=False),
            *(nn.Conv2d(planes, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
            *(nn.Conv2d(128, self.width, _CONV, bias=False), nn.BatchNorm2d(self.width), nn.ReLU()),
        )
        self.least = _POOL + (_CONV - 1) * stride

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        if min(height, width) < self.least:
            expected = f"a map of at least {self.least}x{self.least} after the second reduction"
            fix = "Train with larger images, or leave auxiliary_weight out."
            raise UserError(got=f"{height}x{width}", expected=expected, key="auxiliary_weight", fix=fix)
        features: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return features.mean(dim=(2, 3))


class AuxiliaryClassifiers(TrainingOnly, nn.ModuleList):
    """The last layers of an auxiliary classifier, one for each head: features (B, D) to a list of logits (B, C)."""

    def forward(self, features: Tensor) -> list[Tensor]:
        return [classifier(features) for classifier in self]


def parameters_in_evaluation(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of ``module``, each once, without those of auxiliary classifiers."""
    auxiliary = (each for each in module.modules() if isinstance(each, TrainingOnly))
    unused = {id(parameter) for each in auxiliary for parameter in each.parameters()}
    yield from (parameter for parameter in module.parameters() if id(parameter) not in unused)


def remove_auxiliary(net: nn.Module) -> None:
    """Remove the auxiliary classifiers of a network that is not trained further, in place."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, TrainingOnly):
                setattr(module, name, None)
