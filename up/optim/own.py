"""Base of optimizers of our own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import overload

import torch
from torch.optim import Optimizer


class OwnOptimizer(Optimizer):
    """Base of an optimizer that defines ``update``; ``step`` is torch's, with an optional closure that computes the gradients."""

    @abstractmethod
    def update(self) -> None:
        """Update every parameter with a gradient; gradients are off."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter with a gradient; returns the result of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss
