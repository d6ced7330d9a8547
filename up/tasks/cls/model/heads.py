"""Heads: features to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from up.config.argument import AtLeast1, Derived, PartOf, Positive
from up.config.checked import checked
from up.config.contract import Contract
from up.errors import UserError
from up.models.auxiliary import AuxiliaryClassifiers
from up.models.net import read
from up.registry import Registry
from up.text import Verbatim, count, some_of
from up.types import Argument, Record

Names: TypeAlias = list[str] | list[list[str]]  # of the classes; several heads have a list each
Classes: TypeAlias = Annotated[AtLeast1 | Annotated[list[AtLeast1], Field(min_length=1)], Derived("the classes of dataset.train")]

HEADS = Registry(
    "head",
    {
        "base_cls_head": "up.tasks.cls.model.heads:ResNetHead",
        "convnext_head": "up.tasks.cls.model.heads:ConvNeXtHead",
        "vit_head": "up.tasks.cls.model.heads:ViTHead",
        "fpn_cls_head": "up.tasks.cls.model.heads:FPNHead",
    },
    contract=Contract("docs/add_a_part.md", base=lambda: (nn.Module,)),
)

CLASSIFIERS = Registry(
    "classifier",
    {
        "linear": "up.tasks.cls.model.heads:LinearClassifier",
        "norm_linear": "up.tasks.cls.model.heads:NormLinearClassifier",
        "scaled_linear": "up.tasks.cls.model.heads:ScaledLinearClassifier",
    },
)


class Classifier(Protocol):
    """A kind of last layer; only the head knows its sizes."""

    def build(self, in_features: int, out_features: int) -> nn.Module:
        """Build the layer (B, in_features) -> (B, out_features)."""


class LinearClassifier:
    """A linear last layer."""

    def __init__(self, *, bias: bool = True) -> None:
        self.bias = bias

    def build(self, in_features: int, out_features: int) -> nn.Module:
        return nn.Linear(in_features, out_features, bias=self.bias)


class NormLinearClassifier:
    """A last layer whose logits are temperature x cos(x, W), with 20 by default; ``tempearture`` is another spelling."""

    @checked
    def __init__(self, *, temperature: Positive | None = None, tempearture: Positive | None = None) -> None:
        if temperature is not None and tempearture is not None and temperature != tempearture:
            raise UserError(
                f"norm_linear got temperature {temperature} and tempearture {tempearture}. They are the same setting: "
                "keep temperature."
            )
        given = temperature if temperature is not None else tempearture
        self.temperature = 20.0 if given is None else given

    def build(self, in_features: int, out_features: int) -> nn.Module:
        return NormLinear(in_features, out_features, temperature=self.temperature)


class NormLinear(nn.Linear):
    """temperature x cos(x, W) of ``x`` (B, in_features) -> (B, out_features)."""

    def __init__(self, in_features: int, out_features: int, *, temperature: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.temperature * F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))


class ScaledLinearClassifier:
    """A last layer without bias; logits are (x W) / in_features, and W begins with standard deviation 1 (Jordan 2024)."""

    def build(self, in_features: int, out_features: int) -> nn.Module:
        return ScaledLinear(in_features, out_features)


class ScaledLinear(nn.Linear):
    """(x W) / in_features of ``x`` (B, in_features) -> (B, out_features)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight.data /= self.weight.data.std()

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight) / self.in_features


class Head(nn.Module, ABC):
    """Base of heads: a vector (B, D) of the features, then dropout and one classifier or a list of them.

    ``representation_size`` puts Linear + Tanh before the classifier. ``auxiliary_planes``: channels of the features that the
    backbone has for an auxiliary classifier, which runs in training only.
    """

    reads = ("features", "auxiliary")

    @checked
    def __init__(
        self,
        *,
        num_classes: Classes,
        in_features: AtLeast1,
        dropout: Annotated[float, Field(ge=0, lt=1)] | None = None,
        classifier_cfg: Annotated[Classifier | None, PartOf("classifier")] = None,
        representation_size: int | None = None,
        auxiliary_planes: Annotated[AtLeast1 | None, Derived("the backbone")] = None,
    ) -> None:
        super().__init__()
        self.num_classes = [num_classes] if isinstance(num_classes, int) else list(num_classes)
        self.in_features = in_features
        if representation_size is not None:
            layers = OrderedDict(fc=nn.Linear(in_features, representation_size), act=nn.Tanh())
            self.pre_logits: nn.Module = nn.Sequential(layers)
            in_features = representation_size
        else:
            self.pre_logits = nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        kind = classifier_cfg or LinearClassifier()
        classifiers = [kind.build(in_features, classes) for classes in self.num_classes]
        # A single head keeps the short name `classifier.weight`, which checkpoints and distillation configs use.
        one = isinstance(num_classes, int)
        self.classifier: nn.Module = classifiers[0] if one else nn.ModuleList(classifiers)
        self.auxiliary: AuxiliaryClassifiers | None = None
        if auxiliary_planes is not None:
            self.auxiliary = AuxiliaryClassifiers(kind.build(auxiliary_planes, classes) for classes in self.num_classes)

    @property
    def classifiers(self) -> list[nn.Module]:
        """The classifier of each head."""
        return list(self.classifier) if isinstance(self.classifier, nn.ModuleList) else [self.classifier]

    @abstractmethod
    def vector(self, features: Sequence[Tensor]) -> Tensor:
        """Make one vector (B, D) an image of the features of the backbone."""

    def condensed(self, features: Sequence[Tensor]) -> Tensor | None:
        """Reduce the features to a vector (B, D) that ``forward`` takes in their place, as a list of one; None where it needs more.

        No parameter takes part. A frozen backbone's features are kept in this form (``finetune.features``).
        """
        return None

    def forward(self, record: Record) -> dict[str, Tensor | list[Tensor]]:
        """``record["features"]``, a list -> ``logits`` (B, C), or a list of such when there are several heads.

        In training ``record["auxiliary"]`` (B, D) -> ``auxiliary_logits``, a list with those of each head.
        """
        hidden = self.dropout(self.pre_logits(self.vector(read(record, "features", "backbone"))))
        if isinstance(self.classifier, nn.ModuleList):
            found: dict[str, Tensor | list[Tensor]] = {"logits": [classifier(hidden) for classifier in self.classifier]}
        else:
            found = {"logits": self.classifier(hidden)}
        if self.training and self.auxiliary is not None and "auxiliary" in record:
            found["auxiliary_logits"] = self.auxiliary(record["auxiliary"])
        return found


class ResNetHead(Head):
    """Mean over the image (or flattening), dropout and a linear layer, as in ResNet (He et al. 2016, §3.3).

    The feature may be (B, C, H, W), (B, N, C) tokens or (B, C); ``in_plane`` is C, or all that flattening leaves when
    ``use_pool`` is off. ``representation_size`` puts Linear + Tanh before the classifier.
    Raises ``UserError`` for a feature that is not there or has another number of channels.
    """

    @checked
    def __init__(
        self,
        *,
        in_plane: Annotated[int, Field(ge=1), Derived("the backbone")],
        input_feature_idx: int = -1,
        use_pool: bool = True,
        **kwargs: Argument,
    ) -> None:
        super().__init__(in_features=in_plane, **kwargs)
        self.input_feature_idx = input_feature_idx
        self.use_pool = use_pool

    def vector(self, features: Sequence[Tensor]) -> Tensor:
        feature = pick(features, self.input_feature_idx)
        return _checked(self.flat(feature), self.in_features, feature)

    def condensed(self, features: Sequence[Tensor]) -> Tensor | None:
        """Pool the feature; None where it is flattened, which keeps all of its numbers, or is not the first or the last."""
        return self.flat(pick(features, self.input_feature_idx)) if self.use_pool and self.input_feature_idx in (0, -1) else None

    def flat(self, feature: Tensor) -> Tensor:
        """Pool or flatten a feature to (B, D)."""
        return pooled(feature) if self.use_pool else feature.flatten(1)


class ConvNeXtHead(ResNetHead):
    """Mean over the image, LayerNorm, dropout and a linear layer, as in ConvNeXt (Liu et al. 2022, appendix A).

    The feature may be (B, C, H, W), (B, N, C) tokens or (B, C). ``head_init_scale`` multiplies the first weights.
    Raises ``UserError`` for a feature that is not there or has another number of channels.
    """

    def __init__(self, *, head_init_scale: float = 1.0, **kwargs: Argument) -> None:
        super().__init__(**kwargs)
        self.norm = nn.LayerNorm(self.in_features, eps=1e-6)
        _start_small(self.classifier, head_init_scale)

    def vector(self, features: Sequence[Tensor]) -> Tensor:
        normalised: Tensor = self.norm(super().vector(features))
        return normalised


class ViTHead(ResNetHead):
    """The class token or the mean of the patch tokens, and a linear layer (Dosovitskiy et al. 2021, §3.1).

    The feature is (B, N, C) tokens, the class token first; (B, C) is taken unchanged, and ``avg`` also takes
    (B, C, H, W), which it flattens instead where ``use_pool`` is off. ``representation_size`` puts Linear + Tanh before
    the classifier, ``bn`` a BatchNorm without scale and shift (He et al. 2022, appendix A.1).
    Raises ``UserError`` for a feature that is not there, has no class token or another number of channels.
    """

    @checked
    def __init__(self, *, cls_type: Literal["token", "avg"] = "token", bn: bool = False, **kwargs: Argument) -> None:
        super().__init__(**kwargs)
        self.cls_type = cls_type
        self.bn = nn.BatchNorm1d(self.in_features, eps=1e-6, affine=False) if bn else nn.Identity()
        _start_small(self.classifier, 1.0)

    def vector(self, features: Sequence[Tensor]) -> Tensor:
        normalised: Tensor = self.bn(super().vector(features))
        return normalised

    def flat(self, feature: Tensor) -> Tensor:
        if feature.ndim == 3:
            return feature[:, 0] if self.cls_type == "token" else feature[:, 1:].mean(dim=1)
        if feature.ndim == 4 and self.cls_type == "token":
            raise UserError(
                f"token needs tokens (B, N, C), but the backbone gives a feature of shape {tuple(feature.shape)}",
                fix="Set cls_type: avg.",
                key="cls_type",
            )
        return super().flat(feature)


class FPNHead(Head):
    """Levels of a feature pyramid, each averaged over its positions, and a linear layer on all of them.

    - ``input_feature_idx``: the levels to read, all when left out. A level may be (B, C, H, W), (B, N, C) or (B, C); where
      ``use_pool`` is off it is flattened, and ``in_plane`` counts all its numbers.
    - ``in_plane``: one number when all levels have as many channels, and their vectors are averaged; a list, one number a
      level, joins them.
    - ``feat_planes``: a linear layer brings every level to that width first (one layer for all where ``in_plane`` is one number).
    - ``sum_feature``: add the vectors, which then have one width, instead of averaging or joining them.

    Raises ``UserError`` for another number of levels or channels, and for a sum of vectors of several widths.
    """

    @checked
    def __init__(
        self,
        *,
        in_plane: Annotated[AtLeast1 | list[AtLeast1], Derived("the backbone")],
        feat_planes: Annotated[int, Field(ge=1)] | None = None,
        sum_feature: bool = False,
        input_feature_idx: int | list[int] | None = None,
        use_pool: bool = True,
        **kwargs: Argument,
    ) -> None:
        planes = [in_plane] if isinstance(in_plane, int) else in_plane
        widths = [feat_planes or plane for plane in planes]
        if sum_feature and len(set(widths)) > 1:
            raise UserError(f"sum_feature needs levels of one width, in_plane is {in_plane}. Set feat_planes to a common width.")
        super().__init__(in_features=widths[0] if sum_feature else sum(widths), **kwargs)
        self.in_plane, self.sum_feature, self.use_pool = in_plane, sum_feature, use_pool
        self.indices = [input_feature_idx] if isinstance(input_feature_idx, int) else input_feature_idx
        self.lateral = nn.ModuleList(nn.Linear(plane, feat_planes) for plane in planes) if feat_planes else None

    def vector(self, features: Sequence[Tensor]) -> Tensor:
        chosen = features if self.indices is None else [pick(features, index) for index in self.indices]
        joins = isinstance(self.in_plane, list)
        planes = self.in_plane if isinstance(self.in_plane, list) else [self.in_plane] * len(chosen)
        if len(planes) != len(chosen):
            raise UserError(
                f"lists {count(len(planes), 'level')}, but the net gives {count(len(chosen), 'feature')}",
                fix="List one number for each.",
                key="in_plane",
            )
        levels = [
            _checked(pooled(feature) if self.use_pool else feature.flatten(1), plane, feature)
            for feature, plane in zip(chosen, planes, strict=True)
        ]
        if self.lateral is not None:
            levels = [self.lateral[index if joins else 0](level) for index, level in enumerate(levels)]
        if self.sum_feature:
            return torch.stack(levels).sum(dim=0)
        return torch.cat(levels, dim=1) if joins else torch.stack(levels).mean(dim=0)


def pooled(feature: Tensor) -> Tensor:
    """Average over the positions or the tokens: (B, C, H, W) | (B, N, C) | (B, C) -> (B, C)."""
    if feature.ndim == 4:
        return feature.flatten(1) if feature.shape[2:] == (1, 1) else feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.ndim == 3 else feature


def pick(features: Sequence[Tensor], index: int) -> Tensor:
    """Return the feature of an index, which may count from the end."""
    if not -len(features) <= index < len(features):
        raise UserError(
            f"is {index}, but the backbone gives {count(len(features), 'feature')}",
            expected=f"{-len(features)} to {len(features) - 1}",
            key="input_feature_idx",
        )
    return features[index]


def heads_of(values: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """List logits or scores head by head, for one head too."""
    return [values] if isinstance(values, Tensor) else list(values)


def label_columns(gt: Tensor, heads: int) -> list[Tensor]:
    """List the labels of each head: the columns of (B, heads) int64, or all there is for a single head."""
    if gt.ndim == 2 and not gt.is_floating_point() and gt.shape[1] == heads:
        return list(gt.unbind(dim=1))
    if heads > 1:
        raise UserError(
            f"the net has {heads} heads, but the labels of a batch have the shape {tuple(gt.shape)}. "
            f"Expected (B, {heads}): a list of {heads} labels for every image, and no mixing."
        )
    return [gt]


def labels_of(class_names: Names | None, num_classes: Sequence[int]) -> list[list[str]]:
    """List the names of each head's classes, or their numbers. Raises ``UserError`` for more or fewer names than classes."""
    if not class_names:
        return [[str(label) for label in range(classes)] for classes in num_classes]
    lists = [list(class_names)] if isinstance(class_names[0], str) else [list(names) for names in class_names]
    if [len(names) for names in lists] != list(num_classes):
        raise UserError(
            got=Verbatim(f"{some_of(map(len, lists))} names"),
            expected=f"names of {some_of(num_classes)} classes: one for each output of the net, a list for each head",
            key="class_names",
        )
    return [[str(name) for name in names] for names in lists]


def _checked(vector: Tensor, in_plane: int, feature: Tensor) -> Tensor:
    if vector.shape[1] != in_plane:
        noun = "channels" if vector.shape[1] in feature.shape[1:] else "numbers once flattened"
        raise UserError(
            f"is {in_plane}, but the feature of shape {tuple(feature.shape)} has {vector.shape[1]} {noun}",
            fix=f"Set in_plane: {vector.shape[1]}, or leave it out.",
            key="in_plane",
        )
    return vector


def _start_small(classifier: nn.Module, scale: float) -> None:
    """Initialise with N(0, .02) cut at 2 and no bias, as the papers of ConvNeXt and ViT do."""
    for layer in classifier.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-2.0, b=2.0)
            layer.weight.data.mul_(scale)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
