"""Losses for imbalanced data, for sets of labels, for several views of an image, and with a margin between classes."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from up.config.argument import AtLeast1, Derived, Fraction, NotNegative, Positive
from up.config.checked import checked
from up.errors import UserError
from up.tasks.cls.model.losses import Activation, ClassificationLoss, CrossEntropy, LabelSmoothing, as_soft
from up.types import Argument


class SoftmaxFocal(CrossEntropy):
    """Cross-entropy with less weight on well-classified images: -Σ y (1 - p)^gamma log p (Lin et al. 2017, eq. 4).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float that sums to 1 -> scalar; p is their softmax. ``gamma`` 0 is ``ce``.
    The α of the paper is ``class_weights`` here. For sets of labels: ``sigmoid_focal``.
    """

    @checked
    def __init__(self, *, gamma: NotNegative = 2.0, **kwargs: Argument) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma

    def _cross_entropy(self, logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        log_probs = logits.log_softmax(1)
        terms = as_soft(target, logits) * _rest(log_probs).pow(self.gamma) * log_probs
        if self.class_weights is not None:
            terms = terms * self.class_weights.to(logits.dtype)
        each = -terms.sum(1)
        if reduction == "none":
            return each
        weight = self.weight(target)
        return each.sum() if reduction == "sum" else each.sum() / (len(each) if weight is None else weight.to(each.dtype))


class OfEachClass(ClassificationLoss):
    """Base of losses of sets of labels, which score every class by itself: ``terms`` (B, C), averaged over the images.

    ``reduction`` is that over the classes. Class weights weigh the positives, as with ``bce``.
    """

    activation: ClassVar[Activation] = "sigmoid"

    def __init__(self, *, reduction: Literal["mean", "sum"] = "mean", **kwargs: Argument) -> None:
        super().__init__(**kwargs)
        self.reduction = reduction

    @abstractmethod
    def terms(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """Compute the loss (B, C) of every class; ``target`` (B, C) in [0, 1], ``weights`` (C,) of the positives."""

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return self._of_each(logits, target)[0].mean()

    def _of_each(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        given = self.class_weights
        weights = logits.new_ones(logits.shape[1]) if given is None else given.to(logits.dtype)
        terms = self.terms(logits, as_soft(target, logits), weights)
        shares = terms.mean(1) if self.reduction == "mean" else terms.sum(1)
        return shares, torch.ones_like(shares)


class SigmoidFocal(OfEachClass):
    """Binary cross-entropy of every class with less weight on well-classified ones (Lin et al. 2017, arXiv 1708.02002, eq. 5).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float in [0, 1] -> scalar: α_t (1 - p_t)^gamma · bce. ``alpha`` is the
    weight of positives, 1 - ``alpha`` that of negatives; null weighs both the same.
    """

    @checked
    def __init__(self, *, gamma: NotNegative = 2.0, alpha: Fraction | None = 0.25, **kwargs: Argument) -> None:
        super().__init__(**kwargs)
        self.gamma, self.alpha = gamma, alpha

    def terms(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        probs = logits.sigmoid()
        wrong = probs * (1 - target) + (1 - probs) * target
        losses = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
        losses = losses * wrong.clamp(min=torch.finfo(wrong.dtype).tiny).pow(self.gamma)
        return losses if self.alpha is None else losses * (self.alpha * target + (1 - self.alpha) * (1 - target))


class Asymmetric(OfEachClass):
    """Binary cross-entropy of every class that forgets easy negatives (Ridnik et al. 2021, arXiv 2009.14119, §2.4).

    ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float in [0, 1] -> scalar, over the classes summed unless
    ``reduction: mean``: - y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q) with q = max(p - clip, 0): negatives of a
    probability below ``clip`` are not counted, such as labels that are missing by mistake. The authors' code sums over the
    images too: its learning rates are for that sum.
    """

    @checked
    def __init__(
        self,
        *,
        gamma_neg: NotNegative = 4.0,
        gamma_pos: NotNegative = 1.0,
        clip: Fraction = 0.05,
        reduction: Literal["mean", "sum"] = "sum",
        **kwargs: Argument,
    ) -> None:
        super().__init__(reduction=reduction, **kwargs)
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def terms(self, logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        log_probs, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
        positive = weights * target * _rest(log_probs).pow(self.gamma_pos) * log_probs
        if self.clip:
            log_rest = (log_rest.exp() + self.clip).clamp(max=1).log()
        return -positive - (1 - target) * _rest(log_rest).pow(self.gamma_neg) * log_rest


class JensenShannon(LabelSmoothing):
    """Cross-entropy of the clean view, and the Jensen-Shannon divergence between all views (Hendrycks et al. 2020, AugMix, arXiv
    1912.02781, §3).

    ``logits`` (V · B, C) and ``target`` (V · B, …) of ``views`` V of each image, the views of an image in a row and the clean one
    first, as the transform ``views`` makes them -> scalar: ce(clean) + alpha · Σ_v KL(p_v ‖ mean p) / V. In evaluation, where an
    image has one view, it is the cross-entropy.
    """

    @checked
    def __init__(
        self,
        *,
        views: Annotated[AtLeast1 | None, Derived("the transform views of dataset.train")] = None,
        alpha: NotNegative = 12.0,
        **kwargs: Argument,
    ) -> None:
        super().__init__(**kwargs)
        if views is None or views < 2:
            views_part = "{type: views, kwargs: {transformer: [{type: v2.AugMix}]}}"
            fix = f"Put {views_part} before to_tensor in the transformer of dataset.train."
            raise UserError("jsd compares several views of each image", got=views, expected="2 or more", key="views", fix=fix)
        self.views, self.alpha = views, alpha

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if not self.training:
            return super()._loss(logits, target)
        if len(logits) % self.views:
            what = f"jsd got {len(logits)} rows, no {self.views} views of each image: the micro-batch was cut to fit into memory"
            raise UserError(what, fix="Lower batch_size.")
        clean = super()._loss(logits[:: self.views], target[:: self.views])
        log_probs = logits.log_softmax(1).view(-1, self.views, logits.shape[1])
        mixture = log_probs.exp().mean(1, keepdim=True).clamp(1e-7, 1).log()
        divergence = F.kl_div(mixture.expand_as(log_probs), log_probs, reduction="sum", log_target=True)
        return clean + self.alpha * divergence / len(logits)


class Margin(CrossEntropy):
    """Base of cross-entropies with a margin between the classes, of the cosines that ``norm_linear`` gives.

    ``logits`` (B, C) = scale · cos θ. ``scale`` is the ``temperature`` of the head's classifier. Predictions have no margin.
    """

    def __init__(
        self,
        *,
        margin: NotNegative,
        scale: Annotated[Positive | None, Derived("the temperature of norm_linear")] = None,
        **kwargs: Argument,
    ) -> None:
        super().__init__(**kwargs)
        if scale is None:
            fix = "Set classifier_cfg: {type: norm_linear, kwargs: {temperature: 30}} in the head."
            raise UserError("a margin is one between cosines, which the head does not give", key="scale", fix=fix)
        self.margin, self.scale = margin, scale

    @abstractmethod
    def with_margin(self, cosines: Tensor, margins: Tensor) -> Tensor:
        """Lower the cosines (B, C) by ``margins`` (B, C), which are 0 for the wrong classes."""

    def _cross_entropy(self, logits: Tensor, target: Tensor, reduction: str) -> Tensor:
        margins = self.margin * as_soft(target, logits)
        return super()._cross_entropy(self.scale * self.with_margin(logits / self.scale, margins), target, reduction)


class CosFace(Margin):
    """Cross-entropy of scale · (cos θ - margin) for the class of the label (Wang et al. 2018, CosFace, arXiv 1801.09414, eq. 4).

    AM-softmax (Wang et al. 2018, arXiv 1801.05599) is the same. ``logits`` (B, C), ``target`` (B,) int64 or (B, C) float -> scalar.
    """

    @checked
    def __init__(self, *, margin: NotNegative = 0.35, **kwargs: Argument) -> None:
        super().__init__(margin=margin, **kwargs)

    def with_margin(self, cosines: Tensor, margins: Tensor) -> Tensor:
        return cosines - margins


class ArcFace(Margin):
    """Cross-entropy of scale · cos(θ + margin) for the class of the label (Deng et al. 2019, ArcFace, arXiv 1801.07698, eq. 3).

    Where θ + margin would exceed π it is cos θ - margin · sin margin, which falls with θ. ``logits`` (B, C), ``target`` (B,) int64
    or (B, C) float -> scalar.
    """

    @checked
    def __init__(self, *, margin: NotNegative = 0.5, **kwargs: Argument) -> None:
        super().__init__(margin=margin, **kwargs)
        if margin >= math.pi / 2:
            raise UserError(got=margin, expected="an angle in radians below π / 2", key="margin", fix="The paper has 0.5.")

    def with_margin(self, cosines: Tensor, margins: Tensor) -> Tensor:
        sines = (1 - cosines.square()).clamp(min=1e-12).sqrt()
        moved = cosines * margins.cos() - sines * margins.sin()
        return torch.where(cosines > -margins.cos(), moved, cosines - margins * margins.sin())


def _rest(log_probs: Tensor) -> Tensor:
    """Compute 1 - p from log p, above 0 so that every power has a gradient."""
    return (-torch.expm1(log_probs)).clamp(min=torch.finfo(log_probs.dtype).tiny)
