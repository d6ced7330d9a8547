"""Cost of a network for one image: parameters, multiply-adds and written activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from up.models.auxiliary import parameters_in_evaluation
from up.models.feature_hooks import undisturbed
from up.models.net import Net


@dataclass(frozen=True)
class Cost:
    """The cost of a module for one image."""

    name: str
    parameters: int
    macs: int  # multiply-adds of convolutions, linear layers and attention: half of the floating point operations
    activations: int  # elements that those layers write (Radosavovic et al. 2020), attention maps included


@dataclass(frozen=True)
class Complexity:
    """The cost of the modules of a network, in order, and of the whole."""

    modules: tuple[Cost, ...]
    total: Cost


def complexity(net: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), *, depth: int = 1) -> Complexity:
    """Count the operations of ``net`` (a ``Net``, or any network of one image tensor) in evaluation with an image (C, H, W).

    ``depth``: levels of modules to list, 1 for the children of ``net``; a module's cost includes that of its children.
    Only shapes are computed, on the meta device; a network that cannot run there runs on its own.
    """
    part = _until_the_last_weights(net) if isinstance(net, Net) else net
    with undisturbed(part):
        try:
            counted = _count(part, input_size, meta=True)
        except (RuntimeError, NotImplementedError):
            counted = _count(part, input_size, meta=False)
    root = type(part).__name__

    def cost(name: str, module: nn.Module, path: str) -> Cost:
        flops, activations = (sum(counter.get(path, {}).values()) for counter in counted)
        return Cost(name, sum(parameter.numel() for parameter in parameters_in_evaluation(module)), flops // 2, activations)

    listed = [(name, module) for name, module in net.named_modules() if name and name.count(".") < depth]
    modules = tuple(cost(name, module, f"{root}.{name}") for name, module in listed)
    return Complexity(modules, cost("total", net, "Global"))


def _count(net: nn.Module, input_size: tuple[int, int, int], *, meta: bool) -> tuple[dict[str, dict[object, int]], ...]:
    """Count floating point operations and written elements, by module and operator."""
    held = dict([*net.named_parameters(), *net.named_buffers()])
    device = torch.device("meta") if meta else next((tensor.device for tensor in held.values()), torch.device("cpu"))
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in held.items()} if meta else held
    flops = FlopCounterMode(display=False)
    activations = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(flop_registry, _written))
    # The plain formula of attention is counted; the fused kernels of the CPU have no formula.
    with torch.no_grad(), device, sdpa_kernel(SDPBackend.MATH), flops, activations:
        image = torch.zeros(1, *input_size)
        torch.func.functional_call(net, stand_ins, ({"image": image} if isinstance(net, Net) else image,))
    return flops.get_flop_counts(), activations.get_flop_counts()


def _written(*_: object, out_shape: torch.Size | Sequence[torch.Size], **__: object) -> int:
    """Count the elements of an operator's (first) output; a formula for ``FlopCounterMode``."""
    return math.prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0])


def _until_the_last_weights(net: Net) -> Net:
    """Remove the modules after the last one with parameters: losses and post-processing cost nothing."""
    weighty = [name for name in net.module_names if any(True for _ in net[name].parameters())]
    last = net.module_names.index(weighty[-1]) if weighty else -1
    return net.without(*net.module_names[last + 1 :])
