"""Keeping parts of a network as they are: their parameters get no gradient and their BatchNorms no new statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from up.models.norm import is_batch_norm
from up.models.patterns import Matcher, any_of, require_matches

FREEZE_KEY = "freeze_patterns"


def set_trainable(module: nn.Module, patterns: Sequence[str], *, trainable: bool) -> list[str]:
    """Give the matching parameters a gradient or none, and return their names.

    Raises ``UserError`` with near names for a pattern that matches no parameter and no buffer.
    """
    parameters = dict(module.named_parameters())
    require_matches(patterns, [*parameters, *(name for name, _ in module.named_buffers())], key=FREEZE_KEY)
    fits = any_of(patterns, key=FREEZE_KEY)
    chosen = [name for name in parameters if fits(name)]
    for name in chosen:
        parameters[name].requires_grad_(trainable)
    return chosen


def resting_norms(module: nn.Module, is_frozen: Matcher) -> Iterator[nn.Module]:
    """The BatchNorms whose parameters are all frozen; one without parameters rests when its name ``is_frozen``.

    Statistics that keep moving under frozen weights would change what the frozen part computes.
    """
    for name, child in module.named_modules():
        if is_batch_norm(child):
            own = list(child.parameters(recurse=False))
            if not any(parameter.requires_grad for parameter in own) if own else is_frozen(name):
                yield child
