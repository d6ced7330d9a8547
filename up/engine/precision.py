"""Mixed precision and the guarded optimizer step: unscale, clip, all ranks finite?, step, zero."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from up.engine.clip import Clip
from up.engine.shards import local
from up.errors import NumericalError, UserError
from up.types import StateDict

Mode = Literal["bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_SCALE = 2.0**64  # a loss without gradients would double its scale without end


@dataclass
class LossScale:
    """The factor that keeps small fp16 gradients from vanishing (Micikevicius et al. 2018, section 3.2).

    The rule is that of ``torch.amp.GradScaler``: halved when gradients overflow, doubled after ``growth_interval`` good
    steps. It is kept on the host, which knows the finite check's result anyway, so that all ranks change it together and no
    step waits for the device a second time.
    """

    scale: float = 65536.0
    dynamic: bool = True
    growth_interval: int = 2000
    good_steps: int = 0

    def grow(self) -> None:
        """Count a good step, and double the scale when it is time."""
        self.good_steps += self.dynamic
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = min(self.scale * 2, _LARGEST_SCALE), 0

    def shrink(self) -> bool:
        """Halve the scale after an overflow; returns False where it is fixed, or below 1, where the gradients are at fault."""
        if not self.dynamic or self.scale <= 1.0:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True


def is_finite(norm: Tensor) -> bool:
    """Check whether a scalar is finite; waits for the device."""
    return bool(torch.isfinite(norm))


def not_finite(model: nn.Module) -> str | None:
    """Name a weight or statistic of this rank that is not finite; None when all are. Waits for the device once."""
    state = model.state_dict(keep_vars=True).items()
    held = {name: local(value).detach() for name, value in state if isinstance(value, Tensor) and value.is_floating_point()}
    sums = [value.sum().float() for value in held.values()]  # a sum keeps whatever is not finite
    finite = torch.isfinite(torch.stack(sums)).tolist() if sums else []
    return next((name for name, is_good in zip(held, finite, strict=True) if not is_good), None)


def fast_mode(device: torch.device) -> tuple[Mode | None, str]:
    """Choose the number format that ``device`` computes fast, None for float32, and give the reason."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} computes it in its tensor cores, and it needs no loss scale"
        if torch.cuda.get_device_capability(device) >= (7, 0):
            return "fp16", f"{name} has tensor cores for it, but not for bf16"
        return None, f"{name} has no tensor cores"
    if device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return "bf16", "this CPU multiplies matrices of bf16 (AMX)"
    return None, f"{'this CPU' if device.type == 'cpu' else device.type} has no instructions that make 16 bits faster"


class Precision:
    """Number format of a run: float32 (``mode`` None), or autocast to bf16 or to fp16 with a scaled loss.

    Weights, their gradients and the optimizer stay float32. ``scale_factor`` is ``dynamic`` or a fixed number and counts
    under fp16 only. Both modes work on CPU (fp16 slowly). Raises ``UserError`` for an unknown mode, and for bf16 on a
    GPU without it.
    """

    def __init__(
        self, *, mode: Mode | None, device: torch.device | str, scale_factor: Literal["dynamic"] | float = "dynamic"
    ) -> None:
        if mode is not None and mode not in _DTYPES:
            raise UserError(got=mode, expected="bf16, fp16 or null", key="amp")
        self.mode = mode
        self._device_type = torch.device(device).type
        if mode == "bf16" and self._device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"is bf16, which {torch.cuda.get_device_name()} does not compute", fix="Use fp16.", key="amp")
        self.loss_scale = None
        if mode == "fp16" and scale_factor == "dynamic":
            self.loss_scale = LossScale()
        elif mode == "fp16":
            if isinstance(scale_factor, str) or not 0 < scale_factor < float("inf"):
                raise UserError(got=scale_factor, expected="dynamic or a number above 0", key="scale_factor")
            self.loss_scale = LossScale(scale=float(scale_factor), dynamic=False)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self._device_type, dtype=_DTYPES[self.mode]) if self.mode else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the (scaled) ``loss``, a scalar.

        The gradients of a loss that is not finite become NaN, even where they would be finite, so that the norm shows it;
        the sum of the gradients over the ranks carries it to all of them.
        """
        loss = loss * (1 + 0 * loss.detach())  # times 1, exactly, as long as the loss is finite
        (loss * self.loss_scale.scale if self.loss_scale else loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Optimizer, clip: Clip, blame: Callable[[], str] = lambda: "", scale: Tensor | None = None) -> Tensor:
        """Move the weights by the gradients accumulated since the last step, times ``scale``, and drop the gradients.

        Returns their global norm before clipping, a scalar on the device; not finite where the step was skipped.

        The ranks have summed their gradients, so a value that is not finite on one of them is so on all, and no vote is needed:
        fetching the global norm is the only wait for the device in a step. Unless it is finite nothing moves, and ``clip`` keeps
        its state. Under fp16 with a dynamic scale that is a skipped step, retried with half the scale; in all other cases, and at
        the smallest scale, it raises ``NumericalError`` with the text of ``blame``: on all ranks, so ``blame`` may be a collective.
        """
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for factor in (1 / self.loss_scale.scale if self.loss_scale else None, scale):
            if factor is not None and grads:
                torch._foreach_mul_([local(grad) for grad in grads], factor)
        norm = clip.norm(grads)
        if not is_finite(norm):
            optimizer.zero_grad(set_to_none=True)
            if self.loss_scale and self.loss_scale.shrink():
                return norm
            raise self._failure(norm, blame())
        clip.clip_(grads, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.loss_scale:
            self.loss_scale.grow()
        return norm

    def _failure(self, norm: Tensor, why: str) -> NumericalError:
        scale = ""
        if self.loss_scale:
            scale = f" at the {'smallest' if self.loss_scale.dynamic else 'fixed'} loss scale {self.loss_scale.scale:g}"
        return NumericalError(f"the gradient norm is {norm.item()}{scale}; the optimizer did not move{why and f'; {why}'}")

    def state_dict(self) -> StateDict:
        """Return the loss scale, if there is one."""
        return {"scale": self.loss_scale.scale, "good_steps": self.loss_scale.good_steps} if self.loss_scale else {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; a run in another precision, or with a fixed scale, has no use for it."""
        if self.loss_scale and self.loss_scale.dynamic and state:
            self.loss_scale.scale, self.loss_scale.good_steps = state["scale"], state["good_steps"]
