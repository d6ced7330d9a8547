"""How deep in a network a parameter lies: what layer-wise learning rates and gradual unfreezing go by."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

TENSORS_PER_LAYER = 12  # timm's choice for a network that cannot say what its layers are


def module_depths(model: nn.Module) -> dict[str, int]:
    """Parameter name -> 0 for the first module that owns parameters, 1 for the next, and so on to the head.

    The order is that of ``named_parameters``, so it holds for any network; weight and bias of a module share a depth.
    """
    depths: dict[str, int] = {}
    modules: dict[str, int] = {}
    for name, _ in model.named_parameters():
        depths[name] = modules.setdefault(name.rpartition(".")[0], len(modules))
    return depths


def depth_blocks(model: nn.Module, blocks: int) -> dict[str, int]:
    """Parameter name -> its block, 0 nearest the head: the depths cut into ``blocks`` equal runs."""
    depths = module_depths(model)
    total = max(depths.values()) + 1
    return {name: (total - 1 - depth) * blocks // total for name, depth in depths.items()}


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Parameter name -> its layer, 0 at the stem, as timm counts them.

    A network with timm's ``group_matcher`` says itself what its layers are; what stands outside it (the head) is the
    last layer. Any other network is cut in the order of its parameters into layers of twelve tensors, the last module
    of the model being the head.
    """
    trunk, matcher = _offered(model)
    if matcher is None:
        return _in_order(model)
    from timm.models import group_parameters  # a network with a matcher has imported timm long before

    inside = group_parameters(model.get_submodule(trunk), matcher(coarse=False), reverse=True)
    prefix = f"{trunk}." if trunk else ""
    ids = {prefix + name: layer for name, layer in inside.items()}
    last = max(ids.values(), default=-1) + 1
    return {name: ids.get(name, last) for name, _ in model.named_parameters()}


def _offered(model: nn.Module) -> tuple[str, Callable[..., dict[str, object]] | None]:
    """The outermost module that can say what its layers are, and what it says."""
    for name, module in model.named_modules():
        matcher = getattr(module, "group_matcher", None)
        if callable(matcher):
            return name, matcher
    return "", None


def _in_order(model: nn.Module) -> dict[str, int]:
    names = [name for name, _ in model.named_parameters()]
    head = f"{names[-1].partition('.')[0]}." if names else ""
    trunk = [name for name in names if not name.startswith(head)]
    ids = {name: position // TENSORS_PER_LAYER for position, name in enumerate(trunk)}
    last = max(ids.values(), default=-1) + 1
    return {name: ids.get(name, last) for name in names}
