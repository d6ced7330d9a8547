"""Sizes of the paths of a supernet: parameters, multiply-adds, or milliseconds, each the sum over the modules of a path."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from statistics import median
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from up.distributed.group import world_size
from up.errors import UserError
from up.models.complexity import complexity
from up.models.genotype import Genotype
from up.models.supernet import CellSupernet

Kind: TypeAlias = Literal["params", "macs", "latency_ms"]
Image: TypeAlias = tuple[int, int, int]
_WARM, _RUNS = 2, 7  # forward passes of a measured module: before the clock, and under it


class Sizes:
    """Sizes of genotypes by ``kind``; each module costs what it costs alone, for one image (channels, height, width).

    ``latency_ms`` is measured on the CPU of this machine, once for each module of one kind and shape, as the look-up tables of
    FBNet are (Wu et al. 2019, arXiv 1812.03443): good for comparing paths, not the latency of an exported network. ``latencies`` is
    that table, which a resumed run takes over. Raises ``UserError`` for ``latency_ms`` on several ranks, whose clocks differ.
    """

    def __init__(self, supernet: CellSupernet, kind: Kind, image: Image) -> None:
        if kind == "latency_ms" and world_size() > 1:
            fix = "Use macs, or train the supernet on one device."
            raise UserError(f"is measured on one rank, and there are {world_size()}", got=kind, key="size", fix=fix)
        self._supernet, self.kind = supernet, kind
        self._shapes = {} if kind == "params" else _shapes(supernet, image)
        self._costs: dict[str, float] = {}

    def of(self, genotype: Genotype) -> float:
        """Return the size of a path."""
        if self.kind == "params":
            return self._supernet.parameters_of(genotype)
        return sum(self._cost(module) for module in self._supernet.modules_of(genotype))

    @property
    def latencies(self) -> Mapping[str, float]:
        """Milliseconds by kind and shape of a module, those measured so far; empty for other kinds."""
        return self._costs if self.kind == "latency_ms" else {}

    @latencies.setter
    def latencies(self, table: Mapping[str, float]) -> None:
        self._costs.update(table)

    def _cost(self, module: nn.Module) -> float:
        shape = self._shapes[module]
        key = f"{module} of {shape}"
        if key not in self._costs:
            own = deepcopy(module).cpu().eval()
            self._costs[key] = milliseconds(own, shape) if self.kind == "latency_ms" else complexity(own, shape).total.macs
        return self._costs[key]


def milliseconds(module: nn.Module, shape: Image) -> float:
    """Return the median time of ``module`` for one input of ``shape``, on the CPU."""
    x, seconds = torch.zeros(1, *shape), []
    with torch.inference_mode():
        for _ in range(_WARM + _RUNS):
            began = time.perf_counter()
            module(x)
            seconds.append(time.perf_counter() - began)
    return 1000 * median(seconds[_WARM:])


def _shapes(supernet: CellSupernet, image: Image) -> dict[nn.Module, Image]:
    """Return the shape of the input of every module that a path may have."""
    found: dict[nn.Module, Image] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _, channels, height, width = inputs[0].shape
        found[module] = (channels, height, width)

    modules = [*supernet.stem]
    for cell in supernet.cells:
        modules += [cell.preprocess0, cell.preprocess1, *(op for edge in cell.mixed for op in edge)]  # type: ignore[union-attr]
    hooks = [module.register_forward_pre_hook(note) for module in modules]
    was_training, first = supernet.training, next(supernet.parameters())
    try:
        with torch.inference_mode():
            supernet.eval()
            supernet.forward_features(torch.zeros(1, *image, device=first.device, dtype=first.dtype))
    finally:
        supernet.train(was_training)
        for hook in hooks:
            hook.remove()
    return found
