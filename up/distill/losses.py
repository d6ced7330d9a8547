"""Distances between what a layer of the student gives and what one of a teacher gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from up.config.contract import Contract
from up.errors import UserError
from up.registry import Registry

MIMIC_LOSSES = Registry(
    "mimic loss",
    {
        "kl_loss": "up.distill.losses:KLLoss",
        "kd_loss": "up.distill.losses:KDLoss",
        "ce_loss": "up.distill.losses:CELoss",
        "bce_loss": "up.distill.losses:BCELoss",
        "gkd_loss": "up.distill.guided:GKDLoss",
        "l2_loss": "up.distill.losses:L2Loss",
        "dkd": "up.distill.losses:DKD",
        "dist": "up.distill.losses:DIST",
        "attention_transfer": "up.distill.losses:AttentionTransfer",
        "cosine": "up.distill.losses:Cosine",
    },
    contract=Contract("docs/add_a_part.md", base=lambda: (MimicLoss,)),
)

Shape = Sequence[int]

_NEVER = -1e9  # a logit whose probability is 0, without the NaN that infinities bring


class MimicLoss(ABC):
    """``loss(student, teacher, labels)`` -> scalar; the first two are float tensors of one batch, labels (B,) or None.

    No gradient goes to the teacher, which is a constant. Raises ``UserError`` for a negative ``loss_weight``.
    """

    name: ClassVar[str]
    of_logits: ClassVar[bool] = False  # compares scores of classes, which must mean the same on both sides
    needs_labels: ClassVar[bool] = False

    def __init__(self, *, loss_weight: float = 1.0) -> None:
        if loss_weight < 0:
            raise UserError(f"loss_weight is {loss_weight:g}. Expected 0 or more.")
        self.loss_weight = loss_weight

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """``loss_weight`` times the distance."""
        return self.loss_weight * self.distance(student, teacher, labels)

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """The distance between student and teacher, as a scalar."""

    def refusal(self, student: Shape, teacher: Shape) -> str | None:
        """Why it cannot compare these shapes, batch first; None when it can."""
        if self.of_logits:
            fits = len(student) == 2 and tuple(student) == tuple(teacher)
            return None if fits else f"{self.name} compares scores of the same classes, (B, C) on both sides"
        return None if tuple(student) == tuple(teacher) else f"{self.name} compares equal shapes"


class LogitLoss(MimicLoss):
    """A distance between two distributions over classes, both softened by a temperature."""

    of_logits = True

    def __init__(self, *, T: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight=loss_weight)
        if T <= 0:
            raise UserError(f"T is {T:g}. Expected more than 0: it divides the logits.")
        self.T = T


class KLLoss(LogitLoss):
    """KL divergence from the student's softened probabilities to the teacher's (Hinton et al. 2015, §2).

    ``student``, ``teacher`` (B, C) logits -> T² Σ p (log p - log q) / B. T² keeps the gradient's size whatever T is.
    ``norm`` divides the logits of each image by their length first, so that only their direction is compared.
    """

    name = "kl_loss"

    def __init__(self, *, T: float = 1.0, norm: bool = False, loss_weight: float = 1.0) -> None:
        super().__init__(T=T, loss_weight=loss_weight)
        self.norm = norm

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if self.norm:
            student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        ours, theirs = (student / self.T).log_softmax(1), (teacher / self.T).log_softmax(1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.T**2


class KDLoss(KLLoss):
    """The same as kl_loss (Hinton et al. 2015, §2), under the name that goes with a temperature."""

    name = "kd_loss"


class CELoss(LogitLoss):
    """Cross-entropy with the teacher's softened probabilities as targets (Hinton et al. 2015, §2).

    ``student``, ``teacher`` (B, C) logits -> -T² Σ p log q / B: kl_loss and the teacher's entropy, which is constant.
    """

    name = "ce_loss"

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return F.cross_entropy(student / self.T, (teacher / self.T).softmax(1)) * self.T**2


class BCELoss(LogitLoss):
    """Binary cross-entropy of every class with the teacher's sigmoid as target (Yang et al. 2023, arXiv 2308.06453).

    ``student``, ``teacher`` (B, C) logits -> T² times the mean over images and classes. ``batch_mean: True`` sums over the
    classes, and takes the mean over the images only. For nets trained with bce.
    """

    name = "bce_loss"

    def __init__(self, *, T: float = 1.0, batch_mean: bool = False, loss_weight: float = 1.0) -> None:
        super().__init__(T=T, loss_weight=loss_weight)
        self.batch_mean = batch_mean

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        mean = F.binary_cross_entropy_with_logits(student / self.T, (teacher / self.T).sigmoid()) * self.T**2
        return mean * student.shape[1] if self.batch_mean else mean


class DKD(LogitLoss):
    """Decoupled KD: the target class and the others among themselves, weighed apart (Zhao et al. 2022, arXiv 2203.08679, eq. 7).

    ``student``, ``teacher`` (B, C) logits, ``labels`` (B,) -> T² (alpha TCKD + beta NCKD) / B, where TCKD is the KL
    divergence of (target, all others) and NCKD that of the others renormalised. alpha 1, beta 8, T 4 are the paper's for
    CIFAR-100; for ImageNet its code takes beta 0.5 and T 1.
    """

    name = "dkd"
    needs_labels = True

    def __init__(self, *, alpha: float = 1.0, beta: float = 8.0, T: float = 4.0, loss_weight: float = 1.0) -> None:
        super().__init__(T=T, loss_weight=loss_weight)
        _expect_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        target = F.one_hot(labels, student.shape[1]).bool()
        (hit, others), (their_hit, their_others) = _decoupled(student / self.T, target), _decoupled(teacher / self.T, target)
        of_target = F.kl_div(hit, their_hit, reduction="batchmean", log_target=True)
        of_others = F.kl_div(others, their_others, reduction="batchmean", log_target=True)
        return (self.alpha * of_target + self.beta * of_others) * self.T**2


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities (B, 2) of the target against the rest, and (B, C) of the rest among themselves."""
    without = logits.masked_fill(target, _NEVER)
    hit = (logits * target).sum(1)
    binary = torch.stack([hit, without.logsumexp(1)], 1).log_softmax(1)
    return binary, without.log_softmax(1)


class DIST(LogitLoss):
    """Pearson correlation instead of equality: the student keeps the teacher's relations (Huang et al. 2022, arXiv 2205.10536, §3).

    ``student``, ``teacher`` (B, C) logits -> T² (beta inter + gamma intra): 1 - correlation of the softened probabilities
    over the classes of an image (inter), and over the images of a batch for a class (intra). The latter depends on the
    batch: ranks do not see each other's images.
    """

    name = "dist"

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, T: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__(T=T, loss_weight=loss_weight)
        _expect_weights(beta=beta, gamma=gamma)
        self.beta, self.gamma = beta, gamma

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        ours, theirs = (student / self.T).softmax(1), (teacher / self.T).softmax(1)
        inter = 1 - pearson(ours, theirs).mean()
        intra = 1 - pearson(ours.T, theirs.T).mean()
        return (self.beta * inter + self.gamma * intra) * self.T**2


def pearson(one: Tensor, other: Tensor, eps: float = 1e-8) -> Tensor:
    """The correlation (N,) of the rows of two (N, M)."""
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1, eps=eps)


class L2Loss(MimicLoss):
    """Squared distance of two features (Romero et al. 2015, FitNets, arXiv 1412.6550, eq. 3), by default of their directions.

    ``student``, ``teacher`` (B, …) of one shape -> Σ (s - t)² / B. ``feat_norm`` divides each image's feature, taken as one
    long vector, by its length first. ``batch_mean: False`` leaves the division by B out.
    """

    name = "l2_loss"

    def __init__(self, *, feat_norm: bool = True, batch_mean: bool = True, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight=loss_weight)
        self.feat_norm, self.batch_mean = feat_norm, batch_mean

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


class AttentionTransfer(MimicLoss):
    """Where the student looks, whatever it sees there (Zagoruyko and Komodakis 2017, arXiv 1612.03928, eq. 2).

    ``student``, ``teacher``: maps (B, C, H, W) of equal H, W, or tokens (B, N, C) of equal N; channels may differ.
    -> Σ (q - q')² / B, where q is Σ over channels of |a|^p at every place, of unit length.
    """

    name = "attention_transfer"

    def __init__(self, *, p: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight=loss_weight)
        if p <= 0:
            raise UserError(f"p is {p:g}. Expected more than 0, such as 2.")
        self.p = p

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return (self._attention(student) - self._attention(teacher)).square().sum() / len(student)

    def refusal(self, student: Shape, teacher: Shape) -> str | None:
        if len(student) == len(teacher) == 4 and tuple(student[2:]) == tuple(teacher[2:]):
            return None
        if len(student) == len(teacher) == 3 and student[1] == teacher[1]:
            return None
        return f"{self.name} compares maps (B, C, H, W) of equal height and width, or tokens (B, N, C) of equal number"

    def _attention(self, feature: Tensor) -> Tensor:
        energy = feature.square() if self.p == 2 else feature.abs().pow(self.p)
        return F.normalize(energy.sum(1 if feature.ndim == 4 else 2).flatten(1), dim=1)


def _expect_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if weight < 0:
            raise UserError(f"{name} is {weight:g}. Expected 0 or more.")
    if not any(weights.values()):
        raise UserError(f"{' and '.join(weights)} are both 0. Expected one of them above 0.")
