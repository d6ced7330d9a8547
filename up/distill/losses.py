"""Distances between an activation of the student and one of a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from up.config.argument import NotNegative, Positive
from up.config.contract import Contract
from up.errors import UserError
from up.registry import Registry

_CLASSES = {
    "kl_loss": "KLLoss",
    "kd_loss": "KDLoss",
    "ce_loss": "CELoss",
    "bce_loss": "BCELoss",
    "gkd_loss": "GKDLoss",
    "l2_loss": "L2Loss",
    "dkd": "DKD",
    "dist": "DIST",
    "attention_transfer": "AttentionTransfer",
    "cosine": "Cosine",
}
MIMIC_LOSSES = Registry(
    "mimic loss",
    {name: f"up.distill.losses:{target}" for name, target in _CLASSES.items()},
    contract=Contract("docs/add_a_part.md", base=lambda: (MimicLoss,)),
)

Shape = Sequence[int]

_NEVER = -1e9  # a logit whose probability is 0, without the NaN that infinities bring


@dataclass(kw_only=True, eq=False)
class MimicLoss(ABC):
    """``loss(student, teacher, labels)`` -> scalar: ``loss_weight`` times the distance of two float tensors of one batch.

    ``labels`` (B,) or None. The teacher's tensor is a constant: no gradient reaches it.
    """

    name: ClassVar[str]
    of_logits: ClassVar[bool] = False  # compares scores of the same classes
    needs_labels: ClassVar[bool] = False
    needs_task_loss: ClassVar[bool] = False  # its gradient guides the distance

    loss_weight: NotNegative = 1.0

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return self.loss_weight * self.distance(student, teacher, labels)

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the distance between student and teacher, a scalar."""

    def shape_problem(self, student: Shape, teacher: Shape) -> str | None:
        """Say why the loss cannot compare these shapes, batch first; None if it can."""
        if self.of_logits:
            fits = len(student) == 2 and tuple(student) == tuple(teacher)
            return None if fits else f"{self.name} compares scores of the same classes, (B, C) on both sides"
        return None if tuple(student) == tuple(teacher) else f"{self.name} compares equal shapes"


@dataclass(kw_only=True, eq=False)
class LogitLoss(MimicLoss):
    """A distance between two distributions over classes, both softened by a temperature."""

    of_logits = True

    T: Positive = 1.0


@dataclass(kw_only=True, eq=False)
class KLLoss(LogitLoss):
    """KL divergence from the student's softened probabilities to the teacher's (Hinton et al. 2015, §2).

    ``student``, ``teacher`` (B, C) logits -> T² Σ p (log p - log q) / B. T² makes the gradient's size independent of T.
    ``norm`` divides the logits of each image by their length first: only their direction is compared.
    """

    name = "kl_loss"

    norm: bool = False

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if self.norm:
            student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        ours, theirs = (student / self.T).log_softmax(1), (teacher / self.T).log_softmax(1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.T**2


class KDLoss(KLLoss):
    """Another name of kl_loss (Hinton et al. 2015, §2)."""

    name = "kd_loss"


class CELoss(LogitLoss):
    """Cross-entropy with the teacher's softened probabilities as targets (Hinton et al. 2015, §2).

    ``student``, ``teacher`` (B, C) logits -> -T² Σ p log q / B: kl_loss and the teacher's entropy, which is constant.
    """

    name = "ce_loss"

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return F.cross_entropy(student / self.T, (teacher / self.T).softmax(1)) * self.T**2


@dataclass(kw_only=True, eq=False)
class BCELoss(LogitLoss):
    """Binary cross-entropy of every class with the teacher's sigmoid as target (Yang et al. 2023, arXiv 2308.06453).

    ``student``, ``teacher`` (B, C) logits -> T² times the mean over images and classes. ``batch_mean: True`` sums over the
    classes, and takes the mean over the images only. For nets trained with bce.
    """

    name = "bce_loss"

    batch_mean: bool = False

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        mean = F.binary_cross_entropy_with_logits(student / self.T, (teacher / self.T).sigmoid()) * self.T**2
        return mean * student.shape[1] if self.batch_mean else mean


@dataclass(kw_only=True, eq=False)
class DKD(LogitLoss):
    """Decoupled KD: the target class and the others among themselves, weighted apart (Zhao et al. 2022, arXiv 2203.08679, eq. 7).

    ``student``, ``teacher`` (B, C) logits, ``labels`` (B,) -> T² (alpha TCKD + beta NCKD) / B, where TCKD is the KL
    divergence of (target, all others) and NCKD that of the others renormalized. alpha 1, beta 8, T 4 are the paper's for
    CIFAR-100; for ImageNet its code has beta 0.5 and T 1.
    """

    name = "dkd"
    needs_labels = True

    alpha: NotNegative = 1.0
    beta: NotNegative = 8.0
    T: Positive = 4.0

    def __post_init__(self) -> None:
        _require_one(alpha=self.alpha, beta=self.beta)

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        target = F.one_hot(labels, student.shape[1]).bool()
        (hit, others), (their_hit, their_others) = _decoupled(student / self.T, target), _decoupled(teacher / self.T, target)
        of_target = F.kl_div(hit, their_hit, reduction="batchmean", log_target=True)
        of_others = F.kl_div(others, their_others, reduction="batchmean", log_target=True)
        return (self.alpha * of_target + self.beta * of_others) * self.T**2


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log probabilities (B, 2) of the target and the rest, and (B, C) within the rest."""
    without = logits.masked_fill(target, _NEVER)
    hit = (logits * target).sum(1)
    binary = torch.stack([hit, without.logsumexp(1)], 1).log_softmax(1)
    return binary, without.log_softmax(1)


@dataclass(kw_only=True, eq=False)
class DIST(LogitLoss):
    """Pearson correlation instead of equality: the student keeps the teacher's relations (Huang et al. 2022, arXiv 2205.10536, §3).

    ``student``, ``teacher`` (B, C) logits -> T² (beta inter + gamma intra): 1 - correlation of the softened probabilities
    over the classes of an image (inter), and over the images of a batch for a class (intra). The latter depends on the
    batch of the rank.
    """

    name = "dist"

    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0

    def __post_init__(self) -> None:
        _require_one(beta=self.beta, gamma=self.gamma)

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        ours, theirs = (student / self.T).softmax(1), (teacher / self.T).softmax(1)
        inter = 1 - pearson(ours, theirs).mean()
        intra = 1 - pearson(ours.T, theirs.T).mean()
        return (self.beta * inter + self.gamma * intra) * self.T**2


def pearson(one: Tensor, other: Tensor, eps: float = 1e-8) -> Tensor:
    """Compute the correlation (N,) of the rows of two (N, M)."""
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1, eps=eps)


@dataclass(kw_only=True, eq=False)
class L2Loss(MimicLoss):
    """Squared distance of two features (Romero et al. 2015, FitNets, arXiv 1412.6550, eq. 3), by default of their directions.

    ``student``, ``teacher`` (B, …) of one shape -> Σ (s - t)² / B. ``feat_norm`` divides each image's feature, taken as one
    long vector, by its length first. ``batch_mean: False`` leaves the division by B out.
    """

    name = "l2_loss"

    feat_norm: bool = True
    batch_mean: bool = True

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        ours, theirs = student.flatten(1), teacher.flatten(1)
        if self.feat_norm:
            ours, theirs = F.normalize(ours, dim=1), F.normalize(theirs, dim=1)
        total = (ours - theirs).square().sum()
        return total / len(student) if self.batch_mean else total


class Cosine(MimicLoss):
    """1 - cos between the channels of student and teacher at every place (Sanh et al. 2019, DistilBERT, arXiv 1910.01108).

    ``student``, ``teacher`` of one shape: (B, C), (B, C, H, W) or tokens (B, N, C) -> the mean over images and places.
    """

    name = "cosine"

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return (1 - F.cosine_similarity(student, teacher, dim=1 if student.ndim == 4 else -1)).mean()


@dataclass(kw_only=True, eq=False)
class AttentionTransfer(MimicLoss):
    """Squared distance of the places of high activation (Zagoruyko and Komodakis 2017, arXiv 1612.03928, eq. 2).

    ``student``, ``teacher``: maps (B, C, H, W) of equal H, W, or tokens (B, N, C) of equal N; channels may differ.
    -> Σ (q - q')² / B, where q is Σ over channels of |a|^p at every place, of unit length.
    """

    name = "attention_transfer"

    p: Annotated[float, Field(ge=1)] = 2.0  # below 1 the gradient is infinite at an activation of 0, as after a ReLU

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return (self._attention(student) - self._attention(teacher)).square().sum() / len(student)

    def shape_problem(self, student: Shape, teacher: Shape) -> str | None:
        if len(student) == len(teacher) == 4 and tuple(student[2:]) == tuple(teacher[2:]):
            return None
        if len(student) == len(teacher) == 3 and student[1] == teacher[1]:
            return None
        return f"{self.name} compares maps (B, C, H, W) of equal height and width, or tokens (B, N, C) of equal number"

    def _attention(self, feature: Tensor) -> Tensor:
        energy = feature.square() if self.p == 2 else feature.abs().pow(self.p)
        return F.normalize(energy.sum(1 if feature.ndim == 4 else 2).flatten(1), dim=1)


@dataclass(kw_only=True, eq=False)
class GKDLoss(MimicLoss):
    """Squared distance of two features, channels weighted by the gradient of the task loss (Lan and Tian 2024, arXiv 2303.04240).

    ``student``, ``teacher`` of one shape: (B, C), (B, C, H, W) or tokens (B, N, C) -> the mean of w_c (s - t)², where w_c of
    an image is the mean over its places of |d loss / d s_c|, divided by its mean over the channels: the weights of an image
    are 1 on average. The gradient is that of the student, for each image by itself, and a constant. ``reduction: sum`` adds
    over channels and places, and divides by the images alone.
    """

    name = "gkd_loss"
    needs_task_loss = True

    reduction: Literal["mean", "sum"] = "mean"

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Weigh all channels the same, without a gradient."""
        return self._reduced((student - teacher).square())

    def guided(self, student: Tensor, teacher: Tensor, gradient: Tensor) -> Tensor:
        """Compute ``loss_weight`` times the distance from the ``gradient`` (the student's shape) of every image's task loss."""
        return self.loss_weight * self._reduced(channel_weights(gradient) * (student - teacher).square())

    def _reduced(self, squares: Tensor) -> Tensor:
        return squares.mean() if self.reduction == "mean" else squares.sum() / len(squares)


def channel_weights(gradient: Tensor) -> Tensor:
    """Compute a weight per channel and image of (B, C), (B, C, H, W) or (B, N, C), with size 1 in every other dimension."""
    channels = 1 if gradient.ndim in (2, 4) else gradient.ndim - 1
    places = [axis for axis in range(1, gradient.ndim) if axis != channels]
    strength = gradient.abs().mean(places, keepdim=True) if places else gradient.abs()
    average = strength.mean(channels, keepdim=True)
    return torch.where(average > 0, strength / average.clamp(min=torch.finfo(strength.dtype).tiny), 1.0)


def _require_one(**weights: float) -> None:
    if not any(weights.values()):
        raise UserError(f"{' and '.join(weights)} are both 0. Expected one of them above 0.")
