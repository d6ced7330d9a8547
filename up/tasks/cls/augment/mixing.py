"""Mixup and CutMix of a whole batch on the device: one weight a batch, each image with the one at its place from the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from up.config.argument import Derived
from up.config.checked import checked
from up.config.contract import Contract, Method
from up.data.records import Batch
from up.data.transforms.image import Probability, Size
from up.errors import UserError
from up.registry import Registry
from up.text import Verbatim
from up.types import Argument

BATCH_FNS = Registry(
    "batch_fn",
    {
        "batch_mixup": "up.tasks.cls.augment.mixing:BatchMixup",
        "batch_cutmix": "up.tasks.cls.augment.mixing:BatchCutmix",
        "batch_cutmixup": "up.tasks.cls.augment.mixing:BatchCutmixMixup",
    },
    contract=Contract(
        "docs/add_a_part.md",
        methods=(Method("__call__", "def __call__(self, batch: Batch, generator: torch.Generator) -> Batch", "the mixed batch"),),
    ),
)


@dataclass(frozen=True)
class Mix:
    """Draw of a mix: ``lam`` weighs the image itself; CutMix pastes ``box`` (top, bottom, left, right) of the other."""

    lam: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class MixPolicy:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019), weighted by Beta(alpha, alpha); alpha 0 disables it."""

    mixup_alpha: float
    cutmix_alpha: float
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        alphas = (self.mixup_alpha, self.cutmix_alpha)
        if min(alphas) < 0 or max(alphas) == 0 or not all(map(math.isfinite, alphas)):
            raise UserError(
                got=Verbatim(f"{self.mixup_alpha:g} for mixup and {self.cutmix_alpha:g} for CutMix"),
                expected="none below 0 and one above it",
                fix="To train without mixing, leave it out.",
                key="alpha",
            )

    def draw(self, rng: np.random.Generator, size: Size) -> Mix:
        """Draw the mix of images of ``size`` (height, width); CutMix's weight is that of the pixels that are pasted."""
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cut = rng.random() < self.switch_prob if both else self.cutmix_alpha > 0
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        lam = float(rng.beta(alpha, alpha))
        if not cut:
            return Mix(lam)
        height, width = size
        box = cut_box(size, lam, (int(rng.integers(height)), int(rng.integers(width))))
        pasted = (box[1] - box[0]) * (box[3] - box[2])
        return Mix(1 - pasted / (height * width), box)


def cut_box(size: Size, lam: float, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute (top, bottom, left, right) of a box around ``centre``, its sides √(1 - lam) of the image's, clipped."""
    spans = []
    for length, middle in zip(size, centre, strict=True):
        side = int(length * math.sqrt(1 - lam))
        spans += [max(middle - side // 2, 0), min(middle + (side + 1) // 2, length)]
    top, bottom, left, right = spans
    return top, bottom, left, right


def mix_images(own: Tensor, other: Tensor, mix: Mix) -> Tensor:
    """Mix (..., H, W) float images into a new tensor."""
    if mix.box is None:
        return torch.lerp(other, own, mix.lam)
    top, bottom, left, right = mix.box
    mixed = own.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed


def soft_targets(gt: Tensor, num_classes: int) -> Tensor:
    """Convert labels (B,) int64 to one-hot float32 (B, num_classes); soft or multi-hot ones stay."""
    if gt.is_floating_point():
        if gt.ndim != 2 or gt.shape[1] != num_classes:
            raise UserError(got=num_classes, expected=f"{gt.shape[-1]}, the length of the soft labels", key="num_classes")
        return gt.float()
    if gt.ndim != 1:
        raise UserError(
            f"got {gt.shape[-1]} labels an image, expected one: mixing is for nets with a single head; "
            "leave batch_fn and the mixing transforms out"
        )
    return torch.zeros(len(gt), num_classes, device=gt.device).scatter_(1, gt[:, None], 1.0)


def dominant_labels(gt: Tensor, other: Tensor, mixed: Tensor, lam: float) -> Tensor:
    """Return the label (B,) int64 with the larger weight (its own at a tie); of soft labels the largest entry."""
    if gt.is_floating_point():
        return mixed.argmax(1)
    return gt if lam >= 0.5 else other


def expect_labels_within(gt: Tensor, num_classes: int) -> None:
    """Raise ``UserError`` when an integer label has no class."""
    if gt.is_floating_point() or not gt.numel():
        return
    low, high = int(gt.min()), int(gt.max())
    if low < 0 or high >= num_classes:
        label = low if low < 0 else high
        raise UserError(
            got=Verbatim(f"{num_classes} and a label {label}"), expected=f"labels within 0..{num_classes - 1}", key="num_classes"
        )


def numpy_generator(generator: Generator) -> np.random.Generator:
    """Return a generator that has the Beta distribution, keyed by a draw from ``generator`` (of the CPU)."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))


Classes: TypeAlias = Annotated[int, Derived("the classes of dataset.train")]


class BatchMix:
    """Mixing of a batch: ``image`` (B, C, H, W), and of labelled images soft ``gt`` (B, num_classes) and ``dominant`` (B,)."""

    def __init__(self, policy: MixPolicy, *, num_classes: Classes = 1000) -> None:
        if not isinstance(num_classes, int):
            what, expected = "batches are mixed for a single head", "one number"
            raise UserError(what, got=num_classes, expected=expected, key="num_classes", fix="Remove batch_fn.")
        self.policy = policy
        self.num_classes = num_classes
        self._checked = False

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        image, gt = batch.image, batch.get("gt")
        if not image.is_floating_point():
            raise UserError(f"batch_fn: got images of {image.dtype}, expected float: end the transforms with to_tensor, normalize")
        if gt is not None:
            self._check_labels(gt)
        mix = self.policy.draw(numpy_generator(generator), (image.shape[-2], image.shape[-1]))
        blended = mix_images(image, image.flip(0), mix)
        if gt is None:
            return Batch(batch, image=blended)
        target = soft_targets(gt, self.num_classes)
        mixed = torch.lerp(target.flip(0), target, mix.lam)
        return Batch(batch, image=blended, gt=mixed, dominant=dominant_labels(gt, gt.flip(0), mixed, mix.lam))

    def _check_labels(self, gt: Tensor) -> None:
        """Check every batch on the CPU; elsewhere only the first, for reading a label there synchronizes."""
        if gt.device.type == "cpu" or not self._checked:
            expect_labels_within(gt, self.num_classes)
            self._checked = True


class BatchMixup(BatchMix):
    """Blend each image of a batch with another; one weight of Beta(alpha, alpha) a batch (Zhang et al. 2018)."""

    def __init__(self, *, alpha: float = 1.0, **kwargs: Argument) -> None:
        super().__init__(MixPolicy(alpha, 0.0), **kwargs)


class BatchCutmix(BatchMix):
    """Paste a box of another image of the batch into each; its area is 1 - Beta(alpha, alpha) (Yun et al. 2019)."""

    def __init__(self, *, alpha: float = 1.0, **kwargs: Argument) -> None:
        super().__init__(MixPolicy(0.0, alpha), **kwargs)


class BatchCutmixMixup(BatchMix):
    """CutMix with probability ``switch_prob``, otherwise mixup, drawn for each batch."""

    @checked
    def __init__(
        self, *, mixup_alpha: float = 1.0, cutmix_alpha: float = 1.0, switch_prob: Probability = 0.5, **kwargs: Argument
    ) -> None:
        super().__init__(MixPolicy(mixup_alpha, cutmix_alpha, switch_prob), **kwargs)
