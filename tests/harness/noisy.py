"""An optimizer that draws random numbers, as Kron of timm does."""

from __future__ import annotations

from collections.abc import Callable

import torch

TABLES = {"optimizer": {"noisy": "tests.harness.noisy:Noisy"}}


class Noisy(torch.optim.SGD):
    """Moves the weights by noise as well (stochastic gradient Langevin dynamics, Welling and Teh 2011)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                weight += 0.01 * torch.randn_like(weight)
        return loss
