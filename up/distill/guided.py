"""Distillation of features, weighted by how much the student's task loss depends on them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from up.distill.losses import MimicLoss


class GKDLoss(MimicLoss):
    """Squared distance of two features, channels weighted by the gradient of the task loss (Lan and Tian 2024, arXiv 2303.04240).

    ``student``, ``teacher`` of one shape: (B, C), (B, C, H, W) or tokens (B, N, C) -> the mean of w_c (s - t)², where w_c of
    an image is the mean over its places of |d loss / d s_c|, divided by its mean over the channels: the weights of an image
    are 1 on average. The gradient is that of the student, for each image by itself, and a constant. ``reduction: sum`` adds
    over channels and places, and divides by the images alone.
    """

    name = "gkd_loss"

    def __init__(self, *, reduction: Literal["mean", "sum"] = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight=loss_weight)
        self.reduction = reduction

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Without a gradient all channels weigh the same."""
        return self._weighted((student - teacher).square())

    def guided(self, student: Tensor, teacher: Tensor, gradient: Tensor) -> Tensor:
        """``loss_weight`` times the distance, ``gradient`` (of the shape of ``student``) being that of every image's task loss."""
        return self.loss_weight * self._weighted(channel_weights(gradient) * (student - teacher).square())

    def _weighted(self, squares: Tensor) -> Tensor:
        return squares.mean() if self.reduction == "mean" else squares.sum() / len(squares)


def channel_weights(gradient: Tensor) -> Tensor:
    """Of (B, C), (B, C, H, W) or (B, N, C): the weight of each channel of each image, with 1 for every other dimension."""
    channels = 1 if gradient.ndim in (2, 4) else gradient.ndim - 1
    places = [axis for axis in range(1, gradient.ndim) if axis != channels]
    strength = gradient.abs().mean(places, keepdim=True) if places else gradient.abs()
    average = strength.mean(channels, keepdim=True)
    return torch.where(average > 0, strength / average.clamp(min=torch.finfo(strength.dtype).tiny), 1.0)
