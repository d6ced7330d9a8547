"""LAMB: Adam's direction with a step proportional to the norm of the layer's weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor

from up.config.argument import NotNegative, Positive
from up.config.checked import checked
from up.optim import lamb_native
from up.optim.fused import is_dense, is_plain, keep_order
from up.optim.own import OwnOptimizer
from up.types import Record

Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
_UNBIASED = 1e30  # number of steps after which 1 - beta ** steps is 1


class LAMB(OwnOptimizer):
    """Layer-wise adaptive moments for large batches (You et al. 2020, algorithm 2), in the form of NVIDIA's NVLAMB.

    The gradient is first clipped to a global norm of ``max_grad_norm`` over all groups. The direction is
    u = m̂ / (√v̂ + eps) + weight_decay · p; it is scaled by the trust ratio ‖p‖ / ‖u‖ (1 where either is 0) in groups
    with weight decay, in all of them if ``always_adapt``. ``trust_clip`` caps the ratio at 1 (LAMBC);
    ``grad_averaging=False`` adds gradients to m undamped. Nothing waits for the device. Raises ``UserError`` for a setting out of
    range.
    """

    @checked
    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Record] | Iterable[tuple[str, Tensor]],
        lr: NotNegative = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        eps: NotNegative = 1e-6,
        weight_decay: NotNegative = 0.01,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        max_grad_norm: Positive | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "grad_averaging": grad_averaging,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
        }
        super().__init__(params, defaults)
        # torch's name: step() itself skips where `found_inf` is set
        self._step_supports_amp_scaling = all(
            group["grad_averaging"] and is_plain(p) for group in self.param_groups for p in group["params"]
        )
        self._scratch: Tensor | None = None
        self.measured_norm: Tensor | None = None  # of the gradients, where the caller of ``step`` has measured it
        keep_order(self)

    def update(self) -> None:
        divisor = self._clip_divisor()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if not is_plain(params[0]) or not group["grad_averaging"]:
                self._step_foreach(group, params, divisor)
            elif params[0].is_cuda:
                self._step_fused(group, params, divisor)
            else:
                self._step_on_cpu(group, params, divisor)

    def _clip_divisor(self) -> Tensor | None:
        """Compute the divisor of gradients, max(1, global norm / max_grad_norm); None where it is known to be 1."""
        limit: float | None = self.defaults["max_grad_norm"]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if limit is None or not grads:
            return None
        divisor = (self._norm_of(grads) / limit).clamp_(min=1.0)
        is_known = divisor.device.type == "cpu" and not isinstance(divisor, DTensor)
        return None if is_known and divisor.item() == 1.0 else divisor  # with one, torch's kernel writes all gradients again

    def _norm_of(self, grads: list[Tensor]) -> Tensor:
        measured, self.measured_norm = self.measured_norm, None
        if measured is not None and not isinstance(grads[0], DTensor):
            return measured
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        return norm

    def _step_on_cpu(self, group: Record, params: list[Tensor], divisor: Tensor | None) -> None:
        """Step with the extension; parameters that it does not take, one by one with torch: each stays in the caches."""
        skipped: Tensor | None = getattr(self, "found_inf", None)
        if skipped is not None and skipped.item():
            return
        native, states = [], []
        for p in params:
            state = self._state_of(p)
            if lamb_native.takes(p, state):
                native.append(p)
                states.append(state)
            elif is_plain(p) and is_dense(p):
                self._step_fused(group, [p], divisor)
            else:
                self._step_foreach(group, [p], divisor)
        if native:
            torch._foreach_add_([state["step"] for state in states], 1)
            lamb_native.step(group, native, states, 1.0 if divisor is None else divisor.item())

    def _step_fused(self, group: Record, params: list[Tensor], divisor: Tensor | None) -> None:
        """Step by torch's fused Adam, which adds the direction m̂ / (√v̂ + eps) to the decay, and nothing if ``found_inf``."""
        skipped: Tensor | None = getattr(self, "found_inf", None)
        states = [self._state_of(p) for p in params]
        for p, state in zip(params, states, strict=True):
            if state["step"].device != p.device:  # new, or from a checkpoint
                state["step"] = state["step"].to(p.device)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        grads = [p.grad for p in params if p.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        if params[0].is_cuda:
            update = list(torch._foreach_mul(params, group["weight_decay"]))
        else:  # as vectors: torch's kernel copies other memory formats
            params, grads, means, squares = ([_in_memory_order(each) for each in of] for of in (params, grads, means, squares))
            update = [torch.mul(p, group["weight_decay"], out=self._scratch_for(p)) for p in params]
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            update,
            grads,
            means,
            squares,
            [],
            steps if group["bias_correction"] else [torch.full_like(step, _UNBIASED) for step in steps],
            lr=-1.0,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=skipped,
        )
        if skipped is not None:
            torch._foreach_sub_(steps, [skipped] * len(steps))
        self._apply(group, params, update, skipped)

    def _step_foreach(self, group: Record, params: list[Tensor], divisor: Tensor | None) -> None:
        """Step without fused kernels: tensors that ranks share, and gradients that are added to m undamped."""
        grads = [p.grad for p in params if p.grad is not None]
        if divisor is not None:
            grads = list(torch._foreach_div(grads, divisor))
        update = self._adam_direction(group, params, grads)
        if group["weight_decay"] != 0:
            torch._foreach_add_(update, params, alpha=group["weight_decay"])
        self._apply(group, params, update, None)

    def _apply(self, group: Record, params: list[Tensor], update: list[Tensor], skipped: Tensor | None) -> None:
        if group["weight_decay"] != 0 or group["always_adapt"]:
            ratios = _trust_ratios(params, update, capped=group["trust_clip"])
            ratios = ratios if skipped is None else ratios * (1 - skipped)
            torch._foreach_addcmul_(params, update, ratios.unbind(), value=-group["lr"])
        else:  # in a skipped step the update is 0
            torch._foreach_add_(params, update, alpha=-group["lr"])

    def _adam_direction(self, group: Record, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """Update the moments and compute m̂ / (√v̂ + eps)."""
        states = [self._state_of(p) for p in params]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        beta1, beta2 = group["betas"]
        if group["grad_averaging"]:
            torch._foreach_lerp_(means, grads, 1 - beta1)
        else:
            torch._foreach_mul_(means, beta1)
            torch._foreach_add_(means, grads)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        if group["bias_correction"]:
            # each parameter counts its own steps: one unfrozen late is corrected from its first step
            steps = [state["step"].item() for state in states]
            torch._foreach_div_(denominators, [(1 - beta2**step) ** 0.5 for step in steps])
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_mul_(denominators, [1 - beta1**step for step in steps])
        else:
            torch._foreach_add_(denominators, group["eps"])
        return list(torch._foreach_div(means, denominators))

    def _scratch_for(self, p: Tensor) -> Tensor:
        """Return memory for the update of a vector on a CPU, which is kept: fresh pages cost as much as the arithmetic."""
        if self._scratch is None or self._scratch.numel() < p.numel():
            self._scratch = torch.empty_like(p)
        return self._scratch[: p.numel()]

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state


def _in_memory_order(tensor: Tensor) -> Tensor:
    """View a dense tensor as a vector."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _trust_ratios(params: list[Tensor], update: list[Tensor], *, capped: bool) -> Tensor:
    """Compute ‖p‖ / ‖u‖ of each tensor, 1 where either norm is 0."""
    weights, steps = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(update))
    ratios = torch.where((weights > 0) & (steps > 0), weights / steps, 1.0)
    return ratios.clamp(max=1.0) if capped else ratios
