"""Losses for long-tailed data that balance classes by the gradients that they have received so far."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from torch import Tensor

from up.config.argument import Derived, Positive
from up.config.checked import checked
from up.distributed.group import sum_over_ranks, world_size
from up.tasks.cls.model.losses import ClassCounts, WeightedMean, as_soft, check_width, cross_entropy, cross_entropy_of_each


class GradientBalanced(WeightedMean):
    """Softmax cross-entropy of x + shift(g), where g (C,) is the gradient that each class has received so far.

    The gradient of the mean loss towards the logits, (softmax(x + shift) - y) / B, is added up over the steps:
    ``pos_grad`` where it raises a logit, ``neg_grad`` where it lowers one. ``indicator`` picks g: ``pos``, ``neg`` or
    ``pos_and_neg``, the ratio pos / neg. Scores are the softmax of the unshifted logits: the shift is what makes them
    balanced.
    """

    pos_grad: Tensor
    neg_grad: Tensor

    @checked
    def __init__(
        self,
        *,
        num_classes: Annotated[int, Derived("the classes of dataset.train")],
        indicator: Literal["pos", "neg", "pos_and_neg"] = "pos",
        tau: float = 1.0,
        eps: Positive = 1e-4,
        loss_weight: float = 1.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        class_counts: ClassCounts = None,
    ) -> None:
        super().__init__(loss_weight=loss_weight, class_weights=class_weights, class_counts=class_counts)
        self.indicator = indicator
        self.tau = tau
        self.eps = eps
        self.num_classes = num_classes
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        check_width(self.num_classes, logits)
        shifted = logits + self.shift()
        if self.training and logits.requires_grad:
            # In closed form: autograd's would carry fp16's loss scale, loss_weight and the micro-batches.
            probs = shifted.detach().softmax(dim=1)
            self.collect_grad((probs - as_soft(target, logits)) / len(logits))
        return cross_entropy(shifted, target, self.class_weights)

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_of_each(logits + self.shift(), target, self.class_weights)

    @torch.no_grad()
    def collect_grad(self, gradient: Tensor) -> None:
        """Add the gradient (B, C) of one step's loss towards the logits; training steps do so by themselves."""
        raises = (-gradient).clamp(min=0).sum(dim=0)
        lowers = gradient.clamp(min=0).sum(dim=0)
        received = _mean_over_ranks(torch.stack([raises, lowers]).to(self.pos_grad.dtype))
        # A step that overflows fp16 is skipped by the loss scaler; it must not spoil the sums for good.
        received = received.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.pos_grad += received[0]
        self.neg_grad += received[1]

    def received(self) -> Tensor:
        """g (C,), the gradient that each class has received, as ``indicator`` says."""
        if self.indicator == "pos_and_neg":
            return self.pos_grad / (self.neg_grad + 1e-10)
        return self.pos_grad if self.indicator == "pos" else self.neg_grad

    @abstractmethod
    def shift(self) -> Tensor:
        """What is added to the logits (C,)."""


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


def _mean_over_ranks(values: Tensor) -> Tensor:
    """The mean, not the sum: what is collected then depends on the global batch and not on the number of ranks."""
    return sum_over_ranks(values) / world_size()
