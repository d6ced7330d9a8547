"""Backbones: timm networks that read the image from the record and add features to it, and the arguments of all of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field
from torch import Tensor, nn

from up.config.argument import Derived, PartOf
from up.config.signature import signature_of
from up.errors import UserError
from up.text import count, some_of
from up.types import Record

Normalize = Annotated[Callable[[nn.Module], nn.Module], PartOf("norm")]
Initializer = Annotated[Callable[[nn.Module], object], PartOf("initializer")]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]  # probability of dropping a value or a layer
Count = Annotated[int, Field(ge=1)]
Channels = Annotated[int, Field(ge=1), Derived("the channels that the image reader gives")]
# Two networks share a name: United Perception's, and timm's, which is the paper's.
Variant: TypeAlias = Literal["up", "timm"]
Common: TypeAlias = Any  # arguments of ``with_stages`` or ``finished``, whose signatures have their types


class Backbone(nn.Module):
    """Mixin that ``as_backbone`` adds to the class of a timm network.

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

    reads = ("image",)

    image_channels: int | None = None  # None if the network rearranges pixels before its first convolution
    variant: Variant | None = None  # None if there is only one network of this name

    _stages: list[int] | None = None  # positions in feature_info; None: the final feature only
    _ends_early: bool = False
    _pooled: bool = False
    _frozen: tuple[str, ...] = ()
    _image_size: tuple[int, int] | None = None  # (height, width) if the network takes no other

    def forward(self, record: Record) -> Record:
        """Compute the features of ``record["image"]`` (B, C, H, W)."""
        image: Tensor = record["image"]
        self._check_size(image)
        if self._stages is None:
            return {"features": [self._final(self.forward_features(image))]}
        if self._ends_early:
            features = self.forward_intermediates(image, indices=self._stages, stop_early=True, intermediates_only=True)
            return {"features": features}
        final, features = self.forward_intermediates(image, indices=self._stages)
        return {"features": [*features[:-1], self._final(final)]}

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of all but frozen modules: moving statistics would change what frozen weights compute."""
        super().train(mode)
        for path in self._frozen:
            self.get_submodule(path).eval()
        return self

    def freeze(self, paths: Sequence[str]) -> None:
        """Take the modules at ``paths`` out of training: no gradients, and always evaluation mode."""
        self._frozen = tuple(paths)
        for path in paths:
            self.get_submodule(path).requires_grad_(False)
        self.train(self.training)

    def select(self, out_layers: Sequence[int] | None, out_strides: Sequence[int] | None) -> None:
        """Return the features of these stages instead of the last alone; layers after the last of them are dropped.

        Stages of ``out_layers`` are numbered as in ResNet: 1 is the first after the stem; 0 is the stem, if the network
        has its features. ``out_strides`` names the same stages by their stride. Raises ``UserError`` for a stage that
        does not exist, is listed twice or out of order, and if the two name different stages.
        """
        infos = self.feature_info
        first = 0 if len(infos) == 5 else 1
        strides = [int(info["reduction"]) for info in infos]
        by_layer = _positions("out_layers", out_layers, [first + place for place in range(len(infos))])
        by_stride = _positions("out_strides", out_strides, strides)
        if by_layer is not None and by_stride is not None and by_layer != by_stride:
            meant = [strides[place] for place in by_layer]
            raise UserError(
                f"{list(out_layers or ())} have the strides {meant}, out_strides is {list(out_strides or ())}",
                fix="Give one of the two, or make them agree.",
                key="out_layers",
            )
        stages = by_stride if by_layer is None else by_layer
        last = len(infos) - 1
        if stages is None or stages == [last]:
            return
        self._stages = stages
        self._ends_early = stages[-1] != last
        if self._ends_early:
            self.prune_intermediate_layers(stages)  # parameters that get no gradient stop DDP
        final_planes = self.out_planes[-1]
        self.out_planes = [final_planes if place == last else int(infos[place]["num_chs"]) for place in stages]
        self.out_strides = [strides[place] for place in stages]

    def _final(self, feature: Tensor) -> Tensor:
        """Bring timm's last feature into our layout: (B, C, H, W), (B, N, C), or pooled (B, C, 1, 1)."""
        if self._pooled:
            feature = self.forward_head(feature, pre_logits=True)
            return feature[:, :, None, None] if feature.ndim == 2 else feature
        return feature.permute(0, 3, 1, 2) if getattr(self, "output_fmt", "") == "NHWC" else feature

    def _check_size(self, image: Tensor) -> None:
        if self.image_channels not in (None, image.shape[1]):
            raise UserError(
                f"the backbone was built for images of {count(self.image_channels or 0, 'channel')} and got {image.shape[1]}. "
                f"Set its input_channel (of type timm: in_chans) to {image.shape[1]}, or leave it out for RGB images."
            )
        if self._image_size is not None and tuple(image.shape[-2:]) != self._image_size:
            built = "x".join(map(str, self._image_size))
            got = "x".join(str(int(side)) for side in image.shape[-2:])
            raise UserError(
                f"the backbone was built for images of {built} pixels and got {got}. Set its img_size to the "
                f"size that the transforms produce, or let them produce {built}."
            )


def as_backbone(
    model: nn.Module, *, pooled: bool = False, variant: Variant | None = None, channels: int = 3, mixin: type[Backbone] = Backbone
) -> Backbone:
    """Make ``model``, a timm network without classifier, a backbone that returns its final feature.

    ``pooled``: the final feature is the input of timm's classifier, (B, C, 1, 1); layers that some networks have between
    pooling and classifier are part of it. ``variant``: its origin, if two networks share its name; weights of the other
    do not load. ``channels`` are those of its images. ``mixin``: what its class becomes a subclass of.
    """
    # The class of the object becomes a subclass of itself, as torch's fully_shard does it: the name of a wrapper around the
    # network would be in every key of the state dict and every module path in configs and checkpoints.
    model.__class__ = _backbone_class(cast(type, type(model)), cast(type, mixin))
    backbone = cast(Backbone, model)
    backbone._pooled = pooled
    backbone.variant = variant
    backbone._image_size = _only_size(model)
    backbone.image_channels = _channels(model, channels)
    planes = cast(int, getattr(model, "head_hidden_size", model.num_features) if pooled else model.num_features)
    backbone.out_planes = [planes]
    backbone.out_strides = [int(info["reduction"]) for info in backbone.feature_info[-1:]]
    return backbone


def finished(
    backbone: Backbone,
    *,
    normalize: Normalize | None = None,
    initializer: Initializer | None = None,
    grad_checkpointing: bool = False,
) -> Backbone:
    """Apply the arguments of every backbone to a freshly built one, norms before weights.

    Raises ``UserError`` if the network has no gradient checkpointing.
    """
    if grad_checkpointing:
        recompute_activations(backbone)
    if normalize is not None:
        normalize(backbone)
    if initializer is not None:
        initializer(backbone)
    return backbone


def with_stages(
    backbone: Backbone, *, out_layers: Sequence[int] | None = None, out_strides: Sequence[int] | None = None, **common: Common
) -> Backbone:
    """Finish a backbone whose stages can be chosen, see ``Backbone.select``."""
    finished(backbone, **common).select(out_layers, out_strides)
    return backbone


def recompute_activations(model: nn.Module) -> None:
    """Turn on gradient checkpointing. Raises ``UserError`` if the network has none."""
    turn_on = getattr(model, "set_grad_checkpointing", None)
    try:
        assert turn_on is not None
        turn_on(True)
    except AssertionError:  # timm's too
        raise UserError(f"{type(model).__name__} has none; leave it out.", key="grad_checkpointing") from None


def published(
    family: Callable[..., Backbone],
    summary: str,
    fixed: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Callable[..., Backbone]:
    """Define a published network of a ``family`` by ``fixed`` arguments and other ``defaults``; the rest is its signature."""
    fixed, defaults = dict(fixed or {}), dict(defaults or {})
    taken = signature_of(family).parameters
    assert {*fixed, *defaults} <= set(taken), f"{family.__name__} takes {list(taken)}"

    def build(**kwargs: object) -> Backbone:
        return family(**{**defaults, **kwargs, **fixed})

    build.__module__, build.__name__, build.__qualname__ = family.__module__, family.__name__, family.__qualname__
    build.__doc__ = f"{summary}\n\n{inspect.getdoc(family)}"
    kind = inspect.Parameter.KEYWORD_ONLY
    rest = [
        inspect.Parameter(name, kind, default=defaults.get(name, each.default), annotation=each.annotation)
        for name, each in taken.items()
        if name not in fixed
    ]
    build.__annotations__ = {each.name: each.annotation for each in rest}
    build.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    return build


@functools.cache
def _backbone_class(base: type, mixin: type) -> type:
    clashes = [
        name
        for name in {**vars(Backbone), **vars(mixin)}
        if not name.startswith("__") and hasattr(base, name) and not hasattr(nn.Module, name)
    ]
    assert not clashes, f"{base.__name__} has its own {clashes}, and Backbone would hide them"
    return type(base.__name__, (mixin, base), {})


def _only_size(model: nn.Module) -> tuple[int, int] | None:
    """Read the only image size of a network with a strict patch embedding."""
    embedding = getattr(model, "patch_embed", None)
    size = getattr(embedding, "img_size", None)
    if size is None or not getattr(embedding, "strict_img_size", False):
        return None
    return int(size[0]), int(size[1])


def _channels(model: nn.Module, wanted: int) -> int | None:
    """Read the channels of the first convolution, if its input can only be an image."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 2, 3, 4, wanted) else None


def _positions(key: str, wanted: Sequence[int] | None, known: list[int]) -> list[int] | None:
    """Find the positions of the ``wanted`` stages in ``known``. Raises ``UserError`` for the argument ``key``."""
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
