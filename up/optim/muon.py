"""Muon: momentum whose singular values are all moved to about 1, for the weights of hidden layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.optim._muon import muon

from up.config.argument import NotNegative, Positive
from up.config.checked import checked
from up.optim.fused import is_plain, keep_order
from up.optim.lamb import Decay
from up.optim.own import OwnOptimizer
from up.types import Record


class Muon(OwnOptimizer):
    """Orthogonalized momentum for weights of hidden layers (Jordan et al. 2024), and SGD with momentum for the others.

    A weight with ``min_ndim`` dimensions or more is a matrix (first dimension, product of the others); its step is its Nesterov
    momentum after ``ns_steps`` Newton-Schulz iterations X <- a X + b (X X') X + c (X X')^2 X, with (a, b, c) = ``ns_coefficients``,
    computed by torch in bf16. ``min_ndim: 4`` means convolutions alone. Other parameters (biases, norms, and below ``min_ndim`` the
    classifier) take steps of SGD with Nesterov momentum ``sgd_momentum``: give them an ``lr`` by ``pconfig``.
    ``weight_decay`` is decoupled for matrices, and an L2 penalty for the others. ``normalize_weights`` scales each matrix to the
    Frobenius norm sqrt(rows) before its step (airbench, Jordan 2024, arXiv 2404.00498).
    Nothing waits for the device, which skips steps on gradients that are not finite.
    """

    @checked
    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Record] | Iterable[tuple[str, Tensor]],
        lr: NotNegative = 0.02,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: NotNegative = 0.0,
        ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: Positive = 1e-7,
        min_ndim: Annotated[int, Field(ge=2)] = 2,
        normalize_weights: bool = False,
        sgd_momentum: Decay = 0.9,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "ns_steps": ns_steps,
                "ns_coefficients": tuple(ns_coefficients),
                "eps": eps,
                "min_ndim": min_ndim,
                "normalize_weights": normalize_weights,
                "sgd_momentum": sgd_momentum,
            },
        )
        # torch's name: step() itself skips where `found_inf` is set
        self._step_supports_amp_scaling = all(is_plain(p) for group in self.param_groups for p in group["params"])
        keep_order(self)

    def update(self) -> None:
        found: Tensor | None = getattr(self, "found_inf", None)
        skipped = None if found is None else found != 0
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in params if p.ndim >= group["min_ndim"]]
            # one by one where weights are kept, so that there is one copy at a time
            for together in [matrices] if skipped is None else ([p] for p in matrices):
                self._step_matrices(group, together, skipped)
            self._step_others(group, [p for p in params if p.ndim < group["min_ndim"]], skipped)

    def _step_matrices(self, group: Record, params: list[Tensor], skipped: Tensor | None) -> None:
        """Step; where ``skipped``, a truth value on the device, weights and momentum keep their values."""
        weights = [_columns_last(p, like=p).view(len(p), -1) for p in params]
        grads = [_columns_last(p.grad, like=p).view(len(p), -1) for p in params if p.grad is not None]
        momenta = [_columns_last(self._momentum_of(p), like=p).view(len(p), -1) for p in params]
        kept = []
        if skipped is not None:
            kept = [weight.clone() for weight in weights]
            # in a skipped step the gradient is the momentum, so that their mean leaves the momentum as it is
            grads = [torch.where(skipped, momentum, grad) for momentum, grad in zip(momenta, grads, strict=True)]
        if group["normalize_weights"] and weights:
            norms = torch._foreach_norm(weights)
            torch._foreach_mul_(weights, [len(weight) ** 0.5 / norm for weight, norm in zip(weights, norms, strict=True)])
        muon(
            weights,
            grads,
            momenta,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=group["ns_coefficients"],
            ns_steps=group["ns_steps"],
            eps=group["eps"],
            adjust_lr_fn=None,  # sqrt(max(1, rows / columns))
            has_complex=False,
        )
        if skipped is not None:
            for old, weight in zip(kept, weights, strict=True):
                torch.where(skipped, old, weight, out=weight)

    def _step_others(self, group: Record, params: list[Tensor], skipped: Tensor | None) -> None:
        """Step; where ``skipped``, gradients and steps are 0, and momentum is multiplied by 1."""
        if not params:
            return
        grads = [p.grad for p in params if p.grad is not None]
        decay: Tensor | float = group["sgd_momentum"]
        if group["weight_decay"] != 0:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if skipped is not None:
            grads = _zero_where(skipped, grads)
            decay = torch.full((), group["sgd_momentum"], device=skipped.device).masked_fill_(skipped, 1.0)
        momenta = [self._momentum_of(p) for p in params]
        torch._foreach_mul_(momenta, decay)
        torch._foreach_add_(momenta, grads)
        steps = torch._foreach_add(grads, momenta, alpha=group["sgd_momentum"])
        if skipped is not None:
            torch._foreach_mul_(steps, (~skipped).float())
        torch._foreach_add_(params, steps, alpha=-group["lr"])

    def _momentum_of(self, p: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def _zero_where(skipped: Tensor, values: list[Tensor]) -> list[Tensor]:
    """Copy tensors, 0 where ``skipped``, in two operations for all of them."""
    flat = torch.cat([value.flatten() for value in values]).masked_fill_(skipped, 0.0)
    pieces = torch.split(flat, [value.numel() for value in values])
    return [piece.view_as(value) for piece, value in zip(pieces, values, strict=True)]


def _columns_last(tensor: Tensor, *, like: Tensor) -> Tensor:
    """Order the dimensions as the memory of the weight ``like`` does, so that all but the first can be flattened without a copy.

    The order of the columns changes nothing: it permutes those of the orthogonalized matrix likewise.
    """
    is_channels_last = like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if is_channels_last else tensor
