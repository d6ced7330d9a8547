"""L2-SP: a penalty on the distance to the starting weights (Li, Grandvalet and Davoine 2018, arXiv 1802.01483)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from up.types import Kwargs


class L2SP:
    """The penalty λ ‖w − w₀‖² of the parameters in ``start``, and its gradient 2 λ (w − w₀), which an optimizer adds.

    The paper writes α / 2 for λ. The gradient is added right before a step, after clipping, as optimizers add weight decay; a
    parameter without a gradient, such as a frozen one, does not move. ``start`` maps names of ``parameters`` to w₀.
    """

    def __init__(self, parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], weight: float) -> None:
        self.weight = weight
        self._pairs = [(p, start[name].detach().to(p.device, copy=True)) for name, p in parameters.items() if name in start]

    def attach(self, optimizer: Optimizer) -> None:
        """Add the gradient in every step of ``optimizer`` from now on."""
        optimizer.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[object, ...], kwargs: Kwargs) -> None:
        moved = [(p, start) for p, start in self._pairs if p.grad is not None]
        if moved:
            differences = torch._foreach_sub([p for p, _ in moved], [start for _, start in moved])
            torch._foreach_add_([p.grad for p, _ in moved if p.grad is not None], differences, alpha=2 * self.weight)
