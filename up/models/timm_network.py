"""``type: timm``: every network of timm by its name there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, cast

import timm
import torch
from torch import nn

from up.config.argument import FromProgram
from up.errors import UserError
from up.models.adapter import Backbone, Channels, Initializer, Normalize, as_backbone, with_stages
from up.models.pretrained import how_to_fetch, with_weights
from up.models.weight_files import reason_in
from up.text import did_you_mean
from up.types import Kwargs


def timm_network(
    *,
    model_name: str,
    pretrained: bool = False,
    pooled: bool = True,
    out_strides: Sequence[int] | None = None,
    in_chans: Channels = 3,
    image_size: Annotated[tuple[int, int] | None, FromProgram()] = None,
    normalize: Normalize | None = None,
    initializer: Initializer | None = None,
    grad_checkpointing: bool = False,
    **kwargs: object,
) -> Backbone:
    """Any network of timm; further kwargs go to ``timm.create_model``.

    - ``pooled``: the feature is the input of timm's classifier, (B, C, 1, 1): with ``base_cls_head`` this is timm's
      network exactly. ``false`` gives its map (B, C, H', W') or tokens (B, N, C), for ``vit_head`` and the like;
      parameters that timm has between them and the classifier are then not trained.
    - ``out_strides``: features of other stages too, for networks that have them.
    - ``in_chans``: channels of the images. Default: those that the image reader gives.
    - ``pretrained``: timm's weights, downloaded at the first use.
    - ``img_size``, of networks for images of one size: derived from the transforms; position embeddings are interpolated.

    Raises ``UserError`` for an unknown name, kwargs that the network does not take, and weights that cannot be fetched.
    """
    _check_name(model_name)
    if "num_classes" in kwargs:
        raise UserError("the classifier is the head's, give it num_classes in its own kwargs.", key="num_classes")
    model = _create(model_name, pretrained, _sized(model_name, {**kwargs, "in_chans": in_chans}, image_size, pretrained))
    return with_stages(
        as_backbone(model, pooled=pooled, channels=in_chans),
        out_strides=out_strides,
        normalize=normalize,
        initializer=initializer,
        grad_checkpointing=grad_checkpointing,
    )


def _check_name(model_name: str) -> None:
    """Names of a place outside of timm's table (``hf-hub:``, ``local-dir:``) are left to timm."""
    if ":" not in model_name and not timm.is_model(model_name):
        near = did_you_mean(model_name, timm.list_models())
        raise UserError(f"timm has no network {model_name!r}.{near} timm.list_models() lists them all.", key="model_name")


def _sized(model_name: str, kwargs: Kwargs, size: tuple[int, int] | None, pretrained: bool) -> Kwargs:
    """Add ``img_size`` to the ``kwargs`` of a network that does not take images of ``size`` without it."""
    if size is None or ":" in model_name or "img_size" in kwargs:
        return kwargs
    known = timm.get_pretrained_cfg(model_name)
    if known is None or not known.fixed_input_size or known.input_size[1:] == size or _takes(model_name, kwargs, size):
        return kwargs
    own, wanted = (" x ".join(map(str, sides)) for sides in (known.input_size[1:], size))
    sized = {**kwargs, "img_size": size}
    if not _takes(model_name, sized, size):
        raise UserError(
            f"timm's {model_name} cannot take images of {wanted} pixels",
            expected=own,
            fix="Crop or resize to it in the transforms.",
        )
    if pretrained:
        warnings.warn(f"{model_name}: position embeddings for images of {own} are interpolated to {wanted}", stacklevel=2)
    return sized


def _takes(model_name: str, kwargs: Kwargs, size: tuple[int, int]) -> bool:
    """Check on the meta device, which costs no memory and about a second, that the network computes images of ``size``."""
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            timm.create_model(model_name, num_classes=0, **kwargs).eval()(torch.empty(2, kwargs["in_chans"], *size))
    except TypeError:  # another argument: the network itself will say which
        return True
    except Exception:  # each network fails in its own way
        return False
    return True


def _create(model_name: str, pretrained: bool, kwargs: Kwargs) -> nn.Module:
    build = with_weights if pretrained else timm.create_model
    try:
        return cast("nn.Module", build(model_name, num_classes=0, **kwargs))
    except TypeError as error:
        raise UserError(f"timm's {model_name} cannot be built with kwargs {kwargs}: {error}") from error
    except Exception as error:
        # timm, its hub client and urllib fail in a dozen ways for the same reason: the weights could not be fetched.
        if not pretrained:
            raise UserError(f"timm's {model_name} cannot be built: {error or type(error).__name__}") from error
        raise UserError(
            f"the weights of timm's {model_name} could not be fetched ({type(error).__name__}: {reason_in(error)})",
            fix=f"Set pretrained: false. {how_to_fetch(model_name)}",
            key="pretrained",
        ) from error
