"""Augmentation policies: AutoAugment and RandAugment as timm has them, under the names that configurations use.

They draw from ``random`` and ``numpy.random``, which the caller seeds, and change pixels as Pillow does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from timm.data import auto_augment as policies

from up.config.argument import AtLeast1, NotNegative
from up.config.checked import checked
from up.data.transforms.image import MEAN_COLOUR, Image, Transform, height_width
from up.data.transforms.pixels import Levels, by_timm, faster
from up.types import Kwargs


class _Policy(Transform):
    """A policy of timm, of operations that are ``faster``."""

    _policy: Callable[[Levels], Levels]

    def __call__(self, image: Image) -> Image:
        return by_timm(self._policy, image)


class AutoAugment(_Policy):
    """A pair of operations for each image, drawn from 25 that a search found for ImageNet (Cubuk et al. 2019, table 9).

    ``size`` is the input's, in pixels: operations that shift by pixels shift by at most .45 of it. ``scale`` is unused.
    """

    def __init__(self, *, size: int | tuple[int, int] = 224, scale: tuple[float, float] | None = None) -> None:
        shorter = min(height_width(size))
        settings = {"translate_const": int(0.45 * shorter), "img_mean": MEAN_COLOUR}
        pairs = policies.auto_augment_policy("original", settings)
        self._policy = policies.AutoAugment([[faster(operation) for operation in pair] for pair in pairs])


class RandAugment(_Policy):
    """``n`` of 15 operations with replacement, each applied with probability .5 at magnitude ``m`` (Cubuk et al. 2020).

    The magnitude is drawn from N(m, magnitude_std) and clipped to 0..10. As in the EfficientNet original, posterize and
    solarize grow milder with ``m``, and the enhancements run from .1 to 1.9; the Incre variant is the one to choose.
    """

    @checked
    def __init__(self, *, n: AtLeast1, m: NotNegative, magnitude_std: NotNegative = 0.0) -> None:
        _warn_above_10(m, "torch_random_augmentation")
        self._policy = policies.RandAugment(_operations(m, magnitude_std, increasing=False), n)


class IncreasingRandAugment(_Policy):
    """RandAugment whose every operation grows stronger with ``m``: timm's ``rand-m{m}-n{n}-mstd{magnitude_std}-inc1``.

    At m = 7: rotate by 21 degrees, posterize to 2 bits, solarize from 77, enhance by 1 +- .63, shift by .315.
    """

    @checked
    def __init__(self, *, n: AtLeast1, m: NotNegative, magnitude_std: NotNegative = 0.0) -> None:
        _warn_above_10(m, "torch_random_augmentationIncre")
        operations = _operations(m, magnitude_std, increasing=True)
        for operation in operations:
            if operation.name == "PosterizeIncreasing":
                operation.level_fn = _AtLeastOneBit(operation.level_fn)
        self._policy = policies.RandAugment(operations, n)


class _AtLeastOneBit:
    """Keep at least one bit: timm keeps none at magnitude 10, which leaves a black image."""

    def __init__(self, bits: Callable[[float, Kwargs], tuple[int]]) -> None:
        self._bits = bits

    def __call__(self, magnitude: float, settings: Kwargs) -> tuple[int]:
        return (max(1, self._bits(magnitude, settings)[0]),)


def _operations(magnitude: float, deviation: float, *, increasing: bool) -> list[policies.AugmentOp]:
    settings = {"img_mean": MEAN_COLOUR, "magnitude_std": deviation}
    names = policies.rand_augment_choices("", increasing=increasing)
    return [faster(each) for each in policies.rand_augment_ops(magnitude, prob=0.5, hparams=settings, transforms=names)]


def _warn_above_10(m: float, name: str) -> None:
    if m > 10:
        warnings.warn(f"{name}.m: {m} is clipped to 10, the maximum", stacklevel=4)
