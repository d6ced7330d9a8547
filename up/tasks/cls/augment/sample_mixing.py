"""Mixup and CutMix as transforms: with ``extra_input`` of two samples in the worker, otherwise of the batch."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Annotated, Self, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from up.config.argument import Derived
from up.config.checked import checked
from up.data.records import Sample
from up.data.transforms.image import Image, Probability, SampleTransform, size_of
from up.errors import UserError
from up.tasks.cls.augment.mixing import (
    BatchMix,
    Mix,
    MixPolicy,
    dominant_labels,
    expect_labels_within,
    mix_images,
    numpy_generator,
    soft_targets,
)
from up.types import Argument

Classes: TypeAlias = Annotated[int | None, Derived("the classes of dataset.train")]


class SampleMix(SampleTransform):
    """Mixing of two samples: ``image``, soft ``gt`` (num_classes,), int ``dominant``.

    Without ``takes_second`` whole batches are mixed by ``as_batch_fn()``. A second image of another size is resized to the
    first's (bilinear, antialiased). The weight is drawn before the second sample is.
    """

    def __init__(
        self, policy: MixPolicy, *, num_classes: Classes = None, extra_input: bool = False, transform: bool = False
    ) -> None:
        self.policy = policy
        self.num_classes = num_classes
        self.takes_second = extra_input
        self.transform_second = transform

    def for_classes(self, known: int | list[int] | None) -> Self:
        """Return the transform for data of ``known`` classes. Raises ``UserError`` where its own number is smaller."""
        complete = copy(self)
        complete.num_classes = known if self.num_classes is None and isinstance(known, int) else self.num_classes
        if complete.num_classes is None or (isinstance(known, int) and complete.num_classes < known):
            expected = f"{known}, as the data have" if isinstance(known, int) else "one number: mixing is for a single head"
            raise UserError("of the mixing transform", got=self.num_classes, expected=expected, key="num_classes")
        return complete

    def __call__(self, sample: Sample, draw_second: Callable[[], Sample]) -> Sample:
        assert self.takes_second, "the batch form belongs to the batch: use as_batch_fn()"
        assert self.num_classes is not None, "for_classes() gives it the number of classes"
        mix = self.policy.draw(numpy_generator(torch.default_generator), size_of(sample.image))
        second = draw_second()
        own, other = _label(sample.gt, self.num_classes), _label(second.gt, self.num_classes)
        soft, other_soft = soft_targets(own, self.num_classes), soft_targets(other, self.num_classes)
        target = torch.lerp(other_soft, soft, mix.lam)
        if own.is_floating_point() or other.is_floating_point():
            own, other = soft, other_soft
        dominant = int(dominant_labels(own, other, target, mix.lam))
        return Sample(sample, image=_mixed(sample.image, second.image, mix), gt=target[0], dominant=dominant)

    def as_batch_fn(self) -> BatchMix:
        """Return the same mixing for whole batches."""
        assert self.num_classes is not None, "for_classes() gives it the number of classes"
        return BatchMix(self.policy, num_classes=self.num_classes)


class Mixup(SampleMix):
    """Blend two images and their labels with a weight of Beta(alpha, alpha) (Zhang et al. 2018).

    ``extra_input``: the second sample is drawn from the data set; otherwise from the batch, as ``batch_mixup`` does.
    ``transform``: the second passes the preceding transforms before it is mixed.
    """

    def __init__(self, *, alpha: float = 1.0, **kwargs: Argument) -> None:
        super().__init__(MixPolicy(alpha, 0.0), **kwargs)


class CutmixMixup(SampleMix):
    """CutMix with probability ``switch_prob``, otherwise mixup (Yun et al. 2019; Zhang et al. 2018).

    ``extra_input``: the second sample is drawn from the data set; otherwise from the batch, as ``batch_cutmixup`` does.
    ``transform``: the second passes the preceding transforms before it is mixed.
    """

    @checked
    def __init__(
        self, *, mixup_alpha: float = 1.0, cutmix_alpha: float = 1.0, switch_prob: Probability = 0.5, **kwargs: Argument
    ) -> None:
        super().__init__(MixPolicy(mixup_alpha, cutmix_alpha, switch_prob), **kwargs)


def _label(gt: int | list[int] | Tensor, num_classes: int) -> Tensor:
    label = torch.as_tensor(gt)[None]
    if label.ndim == 1:
        expect_labels_within(label, num_classes)
    return label


def _mixed(own: Image, other: Image, mix: Mix) -> Image:
    """Mix two images into one of the first's kind."""
    first, second = (image if isinstance(image, Tensor) else F.pil_to_tensor(image) for image in (own, other))
    if first.dtype != second.dtype:
        raise UserError(
            f"got a first image of {first.dtype} and a second of {second.dtype}, expected the same: "
            "set `transform: True` on the mixing transform, or put it before to_tensor"
        )
    if first.shape[-2:] != second.shape[-2:]:
        second = F.resize(second, list(first.shape[-2:]), antialias=True)
    mixed = mix_images(first.float(), second.float(), mix)
    if first.dtype == torch.uint8:
        mixed = mixed.round_().to(torch.uint8)
    return mixed if isinstance(own, Tensor) else F.to_pil_image(mixed)
