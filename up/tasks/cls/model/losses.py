"""What a classifier is trained to minimise; each loss also says how its logits become scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from up.config.argument import Derived, Fraction
from up.config.checked import checked
from up.config.contract import Contract, PartError, called
from up.errors import UserError
from up.registry import Registry

LOSSES = Registry(
    "loss",
    {
        "ce": "up.tasks.cls.model.losses:CrossEntropy",
        "stce": "up.tasks.cls.model.losses:CrossEntropy",
        "bce": "up.tasks.cls.model.losses:BinaryCrossEntropy",
        "label_smooth_ce": "up.tasks.cls.model.losses:LabelSmoothing",
        "softmax_eql": "up.tasks.cls.model.longtail:SoftmaxEQL",
        "softmax_eqlv2": "up.tasks.cls.model.longtail:SoftmaxEQLV2",
    },
    contract=Contract("docs/add_a_part.md", base=lambda: (ClassificationLoss,)),
)

Activation = Literal["softmax", "sigmoid"]
ClassCounts: TypeAlias = Annotated[list[int] | None, Derived("the labels of dataset.train")]


class ClassificationLoss(nn.Module, ABC):
    """A loss of ``logits`` (B, C) against ``target``, (B,) int64 or (B, C) float, that returns a scalar.

    It is computed in float32 at least, under autocast too. ``class_weights`` is one number a class, or ``balanced``:
    n / (C n_c) from ``class_counts``, the training images of each class (0 for a class without images).
    Errors: ``UserError`` for weights or targets that do not fit the number of logits.
    """

    activation: ClassVar[Activation] = "softmax"
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        loss_weight: float = 1.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        class_counts: ClassCounts = None,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        # Not in the checkpoint: the weights follow from the config and the data, which may change on purpose.
        self.register_buffer("class_weights", _weights(class_weights, class_counts), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self._check(logits, target)
        target = target if target.is_floating_point() else target.long()
        with _without_autocast(logits.device.type):
            loss = self._loss(_precise(logits), target)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            what = f"_loss() returned {got}, expected a scalar tensor. Write `return loss.mean()`."
            raise PartError(type(self), f"{called(type(self))}.{what}")
        return self.loss_weight * loss

    @abstractmethod
    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The unweighted loss of float logits."""

    def of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Share (B,) of each image in the loss, and its weight (B,).

        The loss of any images is the sum of their shares over that of their weights, which are 1 but for class weights.
        """
        self._check(logits, target)
        target = target if target.is_floating_point() else target.long()
        with _without_autocast(logits.device.type):
            shares, weights = self._of_each(_precise(logits), target)
        return self.loss_weight * shares, weights

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Every image alone: right for any loss that is a mean over what ``weight`` says, and slow."""
        images = list(zip(logits[:, None], target[:, None], strict=True))
        losses = torch.stack([self._loss(image, wanted) for image, wanted in images])
        if self.weight(target) is None:
            return losses, torch.ones_like(losses)
        weights = torch.tensor([self.weight(wanted) for _, wanted in images]).to(losses)
        return torch.where(weights == 0, 0, losses * weights), weights

    def weight(self, target: Tensor) -> Tensor | float | None:
        """What the loss of ``target`` is the mean of, for a loss that leaves labels out or weighs them. None: of the images.

        The loss of several batches is the sum of loss · weight over the sum of the weights, whatever batches they are.
        """
        return None

    def adjust(self, logits: Tensor) -> Tensor:
        """The logits that scores are made of and an export gives out: the net's own, unless the loss moves them."""
        return logits

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) in float32: they sum to 1 over the classes for softmax, each is its own for sigmoid."""
        adjusted = self.adjust(_precise(logits))
        return adjusted.softmax(dim=1) if self.activation == "softmax" else adjusted.sigmoid()

    def _check(self, logits: Tensor, target: Tensor) -> None:
        classes = logits.shape[1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise UserError(
                f"has {len(self.class_weights)} numbers, but the net gives {classes} logits",
                fix="Give one number for each class, in the order of the labels.",
                key="class_weights",
            )
        if target.shape not in (logits.shape, logits.shape[:1]):
            raise UserError(
                f"{type(self).__name__} got a target of shape {tuple(target.shape)} for logits of shape "
                f"{tuple(logits.shape)}. Expected one label or one number per class for each image: "
                "num_classes of the head, of the mixing and of the data set must agree."
            )


class WeightedMean(ClassificationLoss):
    """A loss that is a mean over images, or over their class weights where there are any."""

    def weight(self, target: Tensor) -> Tensor | None:
        return None if self.class_weights is None else _weight_of_each(target, self.class_weights).sum()


class CrossEntropy(WeightedMean):
    """Softmax cross-entropy against labels or soft targets.

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float that sums to 1 -> scalar. With class weights it is the
    mean weighted by the weight of each target, so that a label and its one-hot vector give the same value.
    """

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, self.class_weights)

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_of_each(logits, target, self.class_weights)


class LabelSmoothing(WeightedMean):
    """Softmax cross-entropy against y (1 - smooth_ratio) + smooth_ratio / C (Szegedy et al. 2016, §7).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float that sums to 1 -> scalar.
    """

    @checked
    def __init__(
        self,
        *,
        smooth_ratio: Fraction = 0.1,
        num_classes: Annotated[int | None, Derived("the classes of dataset.train")] = None,
        loss_weight: float = 1.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        class_counts: ClassCounts = None,
    ) -> None:
        super().__init__(loss_weight=loss_weight, class_weights=class_weights, class_counts=class_counts)
        self.smooth_ratio = smooth_ratio
        self.num_classes = num_classes

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.num_classes is not None:
            check_width(self.num_classes, logits)
        return cross_entropy(logits, target, self.class_weights, self.smooth_ratio)

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_of_each(logits, target, self.class_weights, self.smooth_ratio)


class BinaryCrossEntropy(ClassificationLoss):
    """Sigmoid cross-entropy against labels, soft targets or sets of labels (Wightman et al. 2021, §3).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float in [0, 1] -> scalar. ``reduction`` is what happens to the
    classes; images are always averaged. ``bias`` starts every class at its chance 1 / C: the logits are lowered by
    log C and the classes summed. ``target_threshold`` makes targets above it 1 and the others 0. Class weights weigh
    the positives (``pos_weight`` of torch): weighing whole columns would not move the optimum of any class.
    """

    activation: ClassVar[Activation] = "sigmoid"

    def __init__(
        self,
        *,
        bias: bool = False,
        target_threshold: float | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        loss_weight: float = 1.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        class_counts: ClassCounts = None,
    ) -> None:
        super().__init__(loss_weight=loss_weight, class_weights=class_weights, class_counts=class_counts)
        self.bias = bias
        self.target_threshold = target_threshold
        self.sums_classes = bias or reduction == "sum"

    def adjust(self, logits: Tensor) -> Tensor:
        """``logits`` - log C with ``bias``: the shift is part of what the net says, in scores and exports too."""
        return logits - math.log(logits.shape[1]) if self.bias else logits

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        mean = self._of_classes(logits, target, "mean")
        return mean * logits.shape[1] if self.sums_classes else mean

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        losses = self._of_classes(logits, target, "none")
        shares = losses.sum(dim=1) if self.sums_classes else losses.mean(dim=1)
        return shares, torch.ones_like(shares)

    def _of_classes(self, logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        wanted = as_soft(target, logits)
        if self.target_threshold is not None:
            wanted = (wanted > self.target_threshold).to(logits.dtype)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(self.adjust(logits), wanted, pos_weight=weights, reduction=reduction)


def as_soft(target: Tensor, logits: Tensor) -> Tensor:
    """``target`` as (B, C) numbers of the type of ``logits``; labels become one-hot vectors."""
    soft = target if target.is_floating_point() or target.ndim > 1 else F.one_hot(target, logits.shape[1])
    return soft.to(logits.dtype)


def check_width(num_classes: int, logits: Tensor) -> None:
    """A loss that was told its number of classes must get as many logits."""
    if logits.shape[1] != num_classes:
        raise UserError(
            f"the loss's num_classes is {num_classes}, but the net gives {logits.shape[1]} logits. "
            "Make it equal to num_classes of the head, or leave it out."
        )


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy, averaged over the weights of the targets, which may be labels (B,) or soft (B, C)."""
    target = target if target.ndim == 1 else target.to(logits.dtype)
    if weights is None or target.ndim == 1:
        weights = None if weights is None else weights.to(logits.dtype)
        return F.cross_entropy(logits, target, weight=weights, label_smoothing=smoothing)
    weights = weights.to(logits.dtype)
    total = F.cross_entropy(logits, target, weight=weights, reduction="sum", label_smoothing=smoothing)
    # torch divides by the images for soft targets and by the weights for labels; here both are divided by the weights.
    return total / _weight_of_each(target, weights).sum()


def cross_entropy_of_each(logits: Tensor, target: Tensor, weights: Tensor | None, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The summands (B,) of ``cross_entropy`` and their weights (B,): the sum of the ones over that of the others is its value."""
    target = target if target.ndim == 1 else target.to(logits.dtype)
    weights = None if weights is None else weights.to(logits.dtype)
    shares = F.cross_entropy(logits, target, weight=weights, reduction="none", label_smoothing=smoothing)
    if weights is None:
        return shares, torch.ones_like(shares)
    return shares, _weight_of_each(target, weights)


def _weight_of_each(target: Tensor, weights: Tensor) -> Tensor:
    """The class weights (B,) of labels (B,) or of soft targets (B, C)."""
    return target.to(weights.dtype) @ weights if target.is_floating_point() else weights[target]


def _without_autocast(device: str) -> AbstractContextManager[object]:
    # `meta`, on which shapes are checked without computing, knows no autocast.
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _weights(wanted: Literal["balanced"] | list[float] | None, counts: list[int] | None) -> Tensor | None:
    if wanted is None:
        return None
    if wanted == "balanced":
        if counts is None:
            raise UserError(
                "balanced needs the images per class, which are known for a training set of labels only",
                fix="Give a list of numbers, one for each class, instead.",
                key="class_weights",
            )
        images = sum(counts)
        wanted = [images / (len(counts) * count) if count else 0.0 for count in counts]
    if counts is not None and len(wanted) != len(counts):
        raise UserError(
            f"has {len(wanted)} numbers, but the data have {len(counts)} classes",
            fix="Give one number for each class, in the order of the labels.",
            key="class_weights",
        )
    valid = all(math.isfinite(weight) and weight >= 0 for weight in wanted)
    if not valid or not any(wanted):
        raise UserError(got=wanted, expected="finite numbers >= 0, not all of them 0", key="class_weights")
    return torch.tensor(wanted, dtype=torch.float32)
