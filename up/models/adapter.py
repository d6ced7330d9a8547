"""A timm network as a backbone: it reads the image from the record and adds features to it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field
from torch import Tensor, nn

from up.config.argument import PartOf
from up.errors import UserError
from up.text import count, some_of
from up.types import Record

Normalize = Annotated[Callable[[nn.Module], nn.Module], PartOf("norm")]
Initializer = Annotated[Callable[[nn.Module], object], PartOf("initializer")]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]  # how likely it is that something is dropped
Count = Annotated[int, Field(ge=1)]
# Whose network a shared name means where the two differ: United Perception's, or timm's, which is that of the paper.
Variant: TypeAlias = Literal["up", "timm"]


class Backbone(nn.Module):
    """What is mixed into the class of a timm network by ``as_backbone``.

    ``forward({"image": (B, C, H, W)})`` returns ``{"features": [...]}``, maps (B, out_planes[i], H', W') or tokens
    (B, N, out_planes[i]). The last stage's entry is always the network's final feature, after its closing norm or
    convolution. ``out_strides`` are the input pixels for each position of a feature.
    """

    out_planes: list[int]
    out_strides: list[int]
    feature_info: list[Record]
    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[..., Tensor]
    forward_intermediates: Callable[..., Any]
    prune_intermediate_layers: Callable[..., object]

    image_channels: int | None = None  # None where the network rearranges pixels before its first convolution
    variant: Variant | None = None  # None where there is only one network of this name

    _taps: list[int] | None = None  # positions in feature_info; None: the final feature only
    _ends_early: bool = False
    _pooled: bool = False
    _frozen: tuple[str, ...] = ()
    _image_size: tuple[int, int] | None = None  # (height, width) where the network takes no other

    def forward(self, record: Record) -> dict[str, list[Tensor]]:
        """Compute the features of ``record["image"]`` (B, C, H, W)."""
        image: Tensor = record["image"]
        self._check_size(image)
        if self._taps is None:
            return {"features": [self._final(self.forward_features(image))]}
        if self._ends_early:
            features = self.forward_intermediates(image, indices=self._taps, stop_early=True, intermediates_only=True)
            return {"features": features}
        final, features = self.forward_intermediates(image, indices=self._taps)
        return {"features": [*features[:-1], self._final(final)]}

    def train(self, mode: bool = True) -> Backbone:
        """Training mode for all but what ``freeze`` froze: moving statistics would change what frozen weights compute."""
        super().train(mode)
        for path in self._frozen:
            self.get_submodule(path).eval()
        return self

    def freeze(self, paths: Sequence[str]) -> None:
        """Take the modules at ``paths`` out of training: no gradients, and evaluation mode for good."""
        self._frozen = tuple(paths)
        for path in paths:
            self.get_submodule(path).requires_grad_(False)
        self.train(self.training)

    def select(self, out_layers: Sequence[int] | None, out_strides: Sequence[int] | None) -> None:
        """Return the features of these stages instead of the last alone; layers behind the last one chosen are dropped.

        A stage of ``out_layers`` is counted as ResNet's are: 1 is the first after the stem, and 0 the stem, where a
        network has its features. ``out_strides`` names the same stages by their stride. Raises ``UserError`` for a
        stage that does not exist, for one listed twice or out of order, and when the two name different stages.
        """
        infos = self.feature_info
        first = 0 if len(infos) == 5 else 1
        strides = [int(info["reduction"]) for info in infos]
        by_layer = _positions("out_layers", out_layers, [first + place for place in range(len(infos))])
        by_stride = _positions("out_strides", out_strides, strides)
        if by_layer is not None and by_stride is not None and by_layer != by_stride:
            meant = [strides[place] for place in by_layer]
            raise UserError(
                f"{list(out_layers or ())} have the strides {meant}, and out_strides says {list(out_strides or ())}",
                fix="Give one of the two, or make them agree.",
                key="out_layers",
            )
        taps = by_stride if by_layer is None else by_layer
        last = len(infos) - 1
        if taps is None or taps == [last]:
            return
        self._taps = taps
        self._ends_early = taps[-1] != last
        if self._ends_early:
            self.prune_intermediate_layers(taps)  # parameters that get no gradient stop DDP
        final_planes = self.out_planes[-1]
        self.out_planes = [final_planes if place == last else int(infos[place]["num_chs"]) for place in taps]
        self.out_strides = [strides[place] for place in taps]

    def _final(self, feature: Tensor) -> Tensor:
        """timm's last feature in our layout: (B, C, H, W), (B, N, C), or pooled (B, C, 1, 1)."""
        if self._pooled:
            feature = self.forward_head(feature, pre_logits=True)
            return feature[:, :, None, None] if feature.ndim == 2 else feature
        return feature.permute(0, 3, 1, 2) if getattr(self, "output_fmt", "") == "NHWC" else feature

    def _check_size(self, image: Tensor) -> None:
        if self.image_channels not in (None, image.shape[1]):
            raise UserError(
                f"the backbone was built for images of {count(self.image_channels or 0, 'channel')} and got {image.shape[1]}. "
                f"Set its input_channel to {image.shape[1]}, or leave it out for RGB images."
            )
        if self._image_size is not None and tuple(image.shape[-2:]) != self._image_size:
            built = "x".join(map(str, self._image_size))
            got = "x".join(str(int(side)) for side in image.shape[-2:])
            raise UserError(
                f"the backbone was built for images of {built} pixels and got {got}. Set its img_size to the "
                f"size that the transforms produce, or let them produce {built}."
            )


def as_backbone(model: nn.Module, *, pooled: bool = False, variant: Variant | None = None) -> Backbone:
    """Make ``model``, a timm network without classifier, a backbone that returns its final feature.

    ``pooled``: the final feature is what timm's classifier would read, (B, C, 1, 1), so the layers that some networks
    have between pooling and classifier are part of it. ``variant``: which of two networks of one name it is; weights of
    the other are refused.
    """
    # The object gets a subclass of its own class, as torch's fully_shard does it: a wrapper around the network would
    # put its name into every key of the state dict and every module path that configs and checkpoints speak of.
    model.__class__ = _backbone_class(cast(Any, type(model)))
    backbone = cast(Backbone, model)
    backbone._pooled = pooled
    backbone.variant = variant
    backbone._image_size = _only_size(model)
    backbone.image_channels = _channels(model)
    planes = cast(int, getattr(model, "head_hidden_size", model.num_features) if pooled else model.num_features)
    backbone.out_planes = [planes]
    backbone.out_strides = [int(info["reduction"]) for info in backbone.feature_info[-1:]]
    return backbone


def prepare(
    model: nn.Module, normalize: Normalize | None = None, initializer: Initializer | None = None, grad_checkpointing: bool = False
) -> nn.Module:
    """Apply what every backbone offers to a freshly built network, norms before weights.

    Raises ``UserError`` where the network has no gradient checkpointing.
    """
    if grad_checkpointing:
        recompute_activations(model)
    if normalize is not None:
        model = normalize(model)
    if initializer is not None:
        initializer(model)
    return model


def recompute_activations(model: nn.Module) -> None:
    """Turn on gradient checkpointing. Raises ``UserError`` where the network has none."""
    try:
        cast(Any, model).set_grad_checkpointing(True)
    except (AssertionError, AttributeError):
        raise UserError(f"{type(model).__name__} has none; leave it out.", key="grad_checkpointing") from None


def variant(
    family: Callable[..., Backbone],
    summary: str,
    fixed: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Callable[..., Backbone]:
    """One published network of a ``family``: ``fixed`` arguments, other ``defaults``; its signature is what remains."""
    signature = inspect.signature(family, eval_str=True)
    fixed, defaults = dict(fixed or {}), dict(defaults or {})
    assert {*fixed, *defaults} <= set(signature.parameters), f"{family.__name__} takes {list(signature.parameters)}"

    @functools.wraps(family)
    def build(**kwargs: object) -> Backbone:
        return family(**{**defaults, **kwargs, **fixed})

    remaining = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
        if name not in fixed
    ]
    described = cast(Any, build)
    described.__signature__ = signature.replace(parameters=remaining)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in remaining}
    described.__doc__ = f"{summary}\n\n{inspect.getdoc(family)}"
    return build


@functools.cache
def _backbone_class(base: type) -> type:
    clashes = [
        name for name in vars(Backbone) if not name.startswith("__") and hasattr(base, name) and not hasattr(nn.Module, name)
    ]
    assert not clashes, f"{base.__name__} has its own {clashes}, and Backbone would hide them"
    return type(base.__name__, (Backbone, base), {})


def _only_size(model: nn.Module) -> tuple[int, int] | None:
    """The image size that a network with a strict patch embedding insists on."""
    embedding = getattr(model, "patch_embed", None)
    size = getattr(embedding, "img_size", None)
    if size is None or not getattr(embedding, "strict_img_size", False):
        return None
    return int(size[0]), int(size[1])


def _channels(model: nn.Module) -> int | None:
    """What the first convolution takes, where that can only be an image."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels <= 4 else None


def _positions(key: str, wanted: Sequence[int] | None, known: list[int]) -> list[int] | None:
    """Where the stages that are ``wanted`` stand in ``known``."""
    if wanted is None:
        return None
    if not wanted or any(stage not in known for stage in wanted):
        raise UserError(f"{list(wanted)} is not a choice from the stages of this network, {some_of(known)}.", key=key)
    if any(known.count(stage) > 1 for stage in wanted):
        raise UserError(f"{list(wanted)} does not single out stages of this network, which have {some_of(known)}.", key=key)
    places = [known.index(stage) for stage in wanted]
    if places != sorted(set(places)):
        raise UserError(f"{list(wanted)}: list every stage once, from the first to the last.", key=key)
    return places
