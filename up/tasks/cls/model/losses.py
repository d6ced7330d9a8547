"""Losses of classification; each also defines how its logits become scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, ClassVar, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from up.config.argument import AtLeast1, Derived, Fraction, NotNegative, Positive
from up.config.checked import checked
from up.config.contract import Contract, PartError, called
from up.distributed.group import sum_over_ranks, world_size
from up.engine.evaluate import evaluation_mode
from up.errors import UserError
from up.registry import Registry
from up.types import Argument

LOSSES = Registry(
    "loss",
    {
        "ce": "up.tasks.cls.model.losses:CrossEntropy",
        "stce": "up.tasks.cls.model.losses:CrossEntropy",
        "bce": "up.tasks.cls.model.losses:BinaryCrossEntropy",
        "label_smooth_ce": "up.tasks.cls.model.losses:LabelSmoothing",
        "softmax_eql": "up.tasks.cls.model.losses:SoftmaxEQL",
        "softmax_eqlv2": "up.tasks.cls.model.losses:SoftmaxEQLV2",
        "focal": "up.tasks.cls.model.imbalance:SoftmaxFocal",
        "sigmoid_focal": "up.tasks.cls.model.imbalance:SigmoidFocal",
        "asl": "up.tasks.cls.model.imbalance:Asymmetric",
        "jsd": "up.tasks.cls.model.imbalance:JensenShannon",
        "cosface": "up.tasks.cls.model.imbalance:CosFace",
        "am_softmax": "up.tasks.cls.model.imbalance:CosFace",
        "arcface": "up.tasks.cls.model.imbalance:ArcFace",
    },
    contract=Contract("docs/add_a_part.md", base=lambda: (ClassificationLoss,)),
)

Activation = Literal["softmax", "sigmoid"]
ClassWeights: TypeAlias = Literal["balanced"] | list[float] | None
ClassCounts: TypeAlias = Annotated[list[int] | None, Derived("the labels of dataset.train")]
T = TypeVar("T")


class ClassificationLoss(nn.Module, ABC):
    """A loss of ``logits`` (B, C) against ``target``, (B,) int64 or (B, C) float, that returns a scalar.

    It is computed in float32 at least, under autocast too. ``class_weights`` is one number a class, or ``balanced``:
    n / (C n_c) from ``class_counts``, the training images of each class (0 for a class without images).
    Raises ``UserError`` for weights or targets that do not fit the number of logits.
    """

    activation: ClassVar[Activation] = "softmax"
    class_weights: Tensor | None

    @checked
    def __init__(
        self, *, loss_weight: NotNegative = 1.0, class_weights: ClassWeights = None, class_counts: ClassCounts = None
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        # Not in the checkpoint: the weights follow from the config and the data, which may change on purpose.
        self.register_buffer("class_weights", _weights(class_weights, class_counts), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = self._computed(self._loss, logits, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            what = f"_loss() returned {got}, expected a scalar tensor. Write `return loss.mean()`."
            raise PartError(type(self), f"{called(type(self))}.{what}")
        return loss if self.loss_weight == 1 else self.loss_weight * loss

    @abstractmethod
    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the unweighted loss of float logits."""

    def auxiliary(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of an auxiliary classifier's logits (B, C), which leave no trace in the loss; a scalar."""
        loss: Tensor = self(logits, target)
        return loss

    def of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share (B,) of each image in the loss, and its weight (B,).

        The loss of several images is the sum of their shares divided by the sum of their weights. Weights are 1, or class weights.
        """
        shares, weights = self._computed(self._of_each, logits, target)
        return self.loss_weight * shares, weights

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each image alone: right for any loss that is a mean over what ``weight`` returns, and slow."""
        images = list(zip(logits[:, None], target[:, None], strict=True))
        losses = torch.stack([self._loss(image, wanted) for image, wanted in images])
        if self.weight(target) is None:
            return losses, torch.ones_like(losses)
        weights = torch.tensor([self.weight(wanted) for _, wanted in images]).to(losses)
        return torch.where(weights == 0, 0, losses * weights), weights

    def weight(self, target: Tensor) -> Tensor | float | None:
        """Return the weight of a loss that leaves labels out or weighs them: what it is the mean of. None: of the images.

        The loss of several batches is the sum of loss · weight over the sum of the weights.
        """
        return None

    def adjust(self, logits: Tensor) -> Tensor:
        """Return the logits that scores are made of and exports contain: the net's own, unless the loss moves them."""
        return logits

    def scores(self, logits: Tensor) -> Tensor:
        """Compute probabilities (B, C) in float32: they sum to 1 over the classes for softmax, each is its own for sigmoid."""
        adjusted = self.adjust(_precise(logits))
        return adjusted.softmax(dim=1) if self.activation == "softmax" else adjusted.sigmoid()

    def _computed(self, function: Callable[[Tensor, Tensor], T], logits: Tensor, target: Tensor) -> T:
        """Call ``function`` with checked arguments, without autocast."""
        self._check(logits, target)
        device = logits.device.type
        # `meta`, where shapes are checked without computing, knows no autocast
        with torch.autocast(device, enabled=False) if device != "meta" and torch.is_autocast_enabled(device) else nullcontext():
            return function(_precise(logits), target if target.is_floating_point() else target.long())

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


class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy against labels or soft targets.

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float that sums to 1 -> scalar. With class weights it is the
    mean weighted by the weight of each target, so that a label and its one-hot vector give the same value.
    """

    smooth_ratio = 0.0
    num_classes: int | None = None  # compared with the logits

    def weight(self, target: Tensor) -> Tensor | None:
        return None if self.class_weights is None else _weight_of_each(target, self.class_weights).sum()

    def shifted(self, logits: Tensor) -> Tensor:
        """Return the logits that the loss is computed of."""
        return logits

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.class_weights is None or target.ndim == 1:
            return self._cross_entropy(logits, target, "mean")
        # torch divides by the images for soft targets and by the weights for labels; here both are divided by the weights.
        weights = self.class_weights.to(logits.dtype)
        return self._cross_entropy(logits, target, "sum") / _weight_of_each(target.to(logits.dtype), weights).sum()

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        shares = self._cross_entropy(logits, target, "none")
        if self.class_weights is None:
            return shares, torch.ones_like(shares)
        weights = self.class_weights.to(logits.dtype)
        return shares, _weight_of_each(target if target.ndim == 1 else target.to(logits.dtype), weights)

    def _cross_entropy(self, logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        target = target if target.ndim == 1 else target.to(logits.dtype)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        return F.cross_entropy(self.shifted(logits), target, weight=weights, reduction=reduction, label_smoothing=self.smooth_ratio)

    def _check(self, logits: Tensor, target: Tensor) -> None:
        super()._check(logits, target)
        if self.num_classes is not None and logits.shape[1] != self.num_classes:
            raise UserError(
                f"the loss's num_classes is {self.num_classes}, but the net gives {logits.shape[1]} logits. "
                "Make it equal to num_classes of the head, or leave it out."
            )


class LabelSmoothing(CrossEntropy):
    """Softmax cross-entropy against y (1 - smooth_ratio) + smooth_ratio / C (Szegedy et al. 2016, §7).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float that sums to 1 -> scalar.
    """

    @checked
    def __init__(
        self,
        *,
        smooth_ratio: Fraction = 0.1,
        num_classes: Annotated[int | None, Derived("the classes of dataset.train")] = None,
        **kwargs: Argument,
    ) -> None:
        super().__init__(**kwargs)
        self.smooth_ratio = smooth_ratio
        self.num_classes = num_classes


class BinaryCrossEntropy(ClassificationLoss):
    """Sigmoid cross-entropy against labels, soft targets or sets of labels (Wightman et al. 2021, §3).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float in [0, 1] -> scalar. ``reduction`` is that over the
    classes; images are always averaged. ``bias`` starts every class at its chance 1 / C: the logits are lowered by
    log C and the classes summed. ``target_threshold`` makes targets above it 1 and the others 0. Class weights weigh
    the positives (``pos_weight`` of torch): weighing whole columns would not move the optimum of any class.
    """

    activation: ClassVar[Activation] = "sigmoid"

    @checked
    def __init__(
        self,
        *,
        bias: bool = False,
        target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        **kwargs: Argument,
    ) -> None:
        super().__init__(**kwargs)
        self.bias = bias
        self.target_threshold = target_threshold
        self.sums_classes = bias or reduction == "sum"

    def adjust(self, logits: Tensor) -> Tensor:
        """Lower the logits by log C with ``bias``: the shift is part of the output, in scores and exports too."""
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


class GradientBalanced(CrossEntropy):
    """Softmax cross-entropy of x + shift(g), where g (C,) is the gradient that each class has received so far.

    For long-tailed data. The gradient of the mean loss towards the logits, (softmax(x + shift) - y) / B, is added up over
    the steps: ``pos_grad`` where it raises a logit, ``neg_grad`` where it lowers one. ``indicator`` picks g: ``pos``, ``neg``
    or ``pos_and_neg``, the ratio pos / neg. Scores are the softmax of the unshifted logits: the shift is what makes them
    balanced.
    """

    pos_grad: Tensor
    neg_grad: Tensor

    @checked
    def __init__(
        self,
        *,
        num_classes: Annotated[AtLeast1, Derived("the classes of dataset.train")],
        indicator: Literal["pos", "neg", "pos_and_neg"] = "pos",
        tau: float = 1.0,
        eps: Positive = 1e-4,
        **kwargs: Argument,
    ) -> None:
        super().__init__(**kwargs)
        self.indicator = indicator
        self.tau = tau
        self.eps = eps
        self.num_classes = num_classes
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))

    def shifted(self, logits: Tensor) -> Tensor:
        return logits + self.shift()

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super()._loss(logits, target)  # with the shift of the steps before
        if self.training and logits.requires_grad:
            # In closed form: autograd's would carry fp16's loss scale, loss_weight and the micro-batches.
            probs = self.shifted(logits).detach().softmax(dim=1)
            self.collect_grad((probs - as_soft(target, logits)) / len(logits))
        return loss

    def auxiliary(self, logits: Tensor, target: Tensor) -> Tensor:
        with evaluation_mode(self):  # the sums are the gradients of the logits that make predictions
            return super().auxiliary(logits, target)

    @torch.no_grad()
    def collect_grad(self, gradient: Tensor) -> None:
        """Add the gradient (B, C) of one step's loss towards the logits; training steps do so by themselves."""
        raises = (-gradient).clamp(min=0).sum(dim=0)
        lowers = gradient.clamp(min=0).sum(dim=0)
        # The mean over the ranks, not the sum: it depends on the global batch and not on the number of ranks.
        received = sum_over_ranks(torch.stack([raises, lowers]).to(self.pos_grad.dtype)) / world_size()
        # A step that overflows fp16 is skipped by the loss scaler; it must not spoil the sums for good.
        received = received.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.pos_grad += received[0]
        self.neg_grad += received[1]

    def received(self) -> Tensor:
        """Return g (C,), the gradient that each class has received, as ``indicator`` selects it."""
        if self.indicator == "pos_and_neg":
            return self.pos_grad / (self.neg_grad + 1e-10)
        return self.pos_grad if self.indicator == "pos" else self.neg_grad

    @abstractmethod
    def shift(self) -> Tensor:
        """Compute the summand (C,) of the logits."""


class SoftmaxEQL(GradientBalanced):
    """Softmax equalisation loss: each wrong class j counts (g_j / g_y)^tau times in the denominator of class y.

    -log( e^x_y / Σ_j w_j e^x_j ) with w_y = 1 and w_j = (max(g_j, eps) / max(g_y, eps))^tau, which is the
    cross-entropy of x + tau log max(g, eps), because softmax does not see a constant. ``logits`` (B, C), ``target``
    (B,) int64 or (B, C) float -> scalar. Before any gradient has come in it is plain cross-entropy. After Equalization
    Loss (Tan et al. 2020) and its gradient-guided form (Tan et al. 2021).
    """

    def shift(self) -> Tensor:
        return self.tau * self.received().clamp(min=self.eps).log()


class SoftmaxEQLV2(GradientBalanced):
    """Softmax equalisation loss by shares: cross-entropy of x + log((g / (Σg + eps))^tau + 1e-9).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float -> scalar. As ``softmax_eql``, but the floor is relative
    to the total, so that it means the same early and late in training; it is the logit adjustment of Menon et al.
    2021 with gradients in place of class frequencies.
    """

    def shift(self) -> Tensor:
        received = self.received()
        return ((received / (received.sum() + self.eps)).pow(self.tau) + 1e-9).log()


def as_soft(target: Tensor, logits: Tensor) -> Tensor:
    """Return ``target`` as (B, C) numbers of the type of ``logits``; labels become one-hot vectors."""
    soft = target if target.is_floating_point() or target.ndim > 1 else F.one_hot(target, logits.shape[1])
    return soft.to(logits.dtype)


def _weight_of_each(target: Tensor, weights: Tensor) -> Tensor:
    """Return the class weights (B,) of labels (B,) or of soft targets (B, C)."""
    return target.to(weights.dtype) @ weights if target.is_floating_point() else weights[target]


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _weights(wanted: ClassWeights, counts: list[int] | None) -> Tensor | None:
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
