"""Mixed precision and the guarded optimizer step: unscale, clip, all ranks finite?, step, zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from up.engine.clip import Clip
from up.engine.shards import local
from up.errors import NumericalError, UserError
from up.optim.lamb import LAMB
from up.types import StateDict

Mode = Literal["bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_SCALE, _LARGEST_SCALE = 2.0**16, 2.0**64  # a loss without gradients would double its scale without end


class LossScale:
    """The factor that keeps small fp16 gradients from vanishing (Micikevicius et al. 2018, section 3.2).

    The rule is that of ``torch.amp.GradScaler``: halved when gradients overflow, doubled after ``growth_interval`` good steps.
    A ``fixed`` factor stays. The factor is on the device, and no step waits for it.
    """

    growth_interval = 2000

    def __init__(self, device: torch.device | str, fixed: float | None = None) -> None:
        self.fixed = fixed
        self.scale = torch.tensor(_FIRST_SCALE if fixed is None else fixed, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    @property
    def inverse(self) -> Tensor | float:
        """The factor of gradients that undoes the scale, exactly where the scale is a power of two."""
        return self.scale.reciprocal() if self.fixed is None else 1 / self.fixed

    def update(self, overflowed: Tensor) -> None:
        """Halve the scale if gradients ``overflowed`` (1.0, else 0.0); otherwise count a good step, and double it in time."""
        if self.fixed is None:
            torch._amp_update_scale_(self.scale, self._good_steps, overflowed, 2.0, 0.5, self.growth_interval)
            self.scale.clamp_(max=_LARGEST_SCALE)

    def state_dict(self) -> StateDict:
        """Return scale and good steps as numbers; waits for the device."""
        return {"scale": self.scale.item(), "good_steps": self._good_steps.item()}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; a fixed scale stays."""
        if self.fixed is None and state:
            self.scale.fill_(state["scale"])
            self._good_steps.fill_(state["good_steps"])


class _HostCopy:
    """The copy of a device's scalar on the host, made without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._copy = torch.zeros((), pin_memory=device.type == "cuda")
        self._done: torch.cuda.Event | None = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(self, scalar: Tensor) -> None:
        """Start to copy ``scalar``, over the one before."""
        self._copy.copy_(scalar, non_blocking=True)
        if self._done is not None:
            self._done.record()

    def wait(self) -> float:
        """Wait for the copy and return it."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy.item()


class _Outcome(NamedTuple):
    """What an error says of a step that the device skipped: the norm of its gradients, the loss scale, and what is to blame."""

    norm: Tensor
    scale: Tensor | None
    blame: Callable[[], str]


def is_finite(norm: Tensor) -> bool:
    """Check whether a scalar is finite; waits for the device."""
    return math.isfinite(norm.item())


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
    for name, known in (("AMX", "_is_amx_tile_supported"), ("AVX512-BF16", "_is_avx512_bf16_supported")):
        if device.type == "cpu" and getattr(torch.cpu, known, bool)():
            return "bf16", f"this CPU multiplies matrices of bf16 ({name})"
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
        self.loss_scale: LossScale | None = None
        self._unread: _Outcome | None = None
        self._skipped: _HostCopy | None = None  # 1 where the device skipped the last step
        self._unit: Tensor | None = None  # 1, in the form of the loss
        self.is_late = self._device_type == "cuda"  # elsewhere the host computes anyway, or no optimizer skips a step itself
        if mode == "fp16" and scale_factor == "dynamic":
            self.loss_scale = LossScale(device)
        elif mode == "fp16":
            if isinstance(scale_factor, str) or not 0 < scale_factor < float("inf"):
                raise UserError(got=scale_factor, expected="dynamic or a number above 0", key="scale_factor")
            self.loss_scale = LossScale(device, fixed=float(scale_factor))

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self._device_type, dtype=_DTYPES[self.mode]) if self.mode else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the (scaled) ``loss``, a scalar.

        The gradients of a loss that is not finite become NaN, even where they would be finite, so that the norm shows it;
        the sum of the gradients over the ranks carries it to all of them.
        """
        one = self.loss_scale.scale if self.loss_scale else self._one(loss)
        loss.backward(torch.add(one, loss.detach(), alpha=0))  # type: ignore[no-untyped-call]

    def _one(self, loss: Tensor) -> Tensor:
        if self._unit is None or self._unit.device != loss.device or self._unit.dtype != loss.dtype:
            self._unit = torch.ones_like(loss)
        return self._unit

    def step(self, optimizer: Optimizer, clip: Clip, blame: Callable[[], str] = lambda: "", scale: Tensor | None = None) -> Tensor:
        """Move the weights by the gradients accumulated since the last step, times ``scale``, and drop the gradients.

        Returns their global norm before clipping, a scalar on the device; not finite where the step was skipped.

        The ranks have summed their gradients, so a value that is not finite on one of them is so on all, and no vote is needed.
        Unless the norm is finite nothing moves, and ``clip`` keeps its state. Under fp16 with a dynamic scale that is a skipped
        step, retried with half the scale; in all other cases, and at the smallest scale, it is a ``NumericalError`` with the text
        of ``blame``: on all ranks, so ``blame`` may be a collective.

        On a GPU the device skips the step itself and the error is raised one step later, or by ``settle``, so that the host waits
        for nothing; it waits where the optimizer has no such way, or the clipping policy takes a norm into its state.
        """
        self.settle()
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for factor in (self.loss_scale.inverse if self.loss_scale else None, scale):
            if factor is not None and grads:
                torch._foreach_mul_([local(grad) for grad in grads], factor)
        norm = clip.norm(grads)
        if isinstance(optimizer, LAMB) and clip.is_global_norm_of_step:
            optimizer.measured_norm = norm
        skipped: Tensor | None = None
        if self.is_late and grads and clip.is_stateless and can_skip(optimizer):
            skipped = torch.nan_to_num(norm * 0, nan=1.0)  # 1 where it is not finite, in two kernels
            clip.clip_(grads, norm)
            step_unless(skipped, optimizer)
            self._skipped = self._skipped or _HostCopy(skipped.device)
            self._skipped.start(skipped)
            self._unread = _Outcome(norm, self.loss_scale.scale.clone() if self.loss_scale else None, blame)
        elif is_finite(norm):
            clip.clip_(grads, norm)
            optimizer.step()
        else:
            skipped = torch.ones_like(norm)
            self._expect_retry(norm.item(), self.loss_scale.scale.item() if self.loss_scale else 0.0, blame)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None
        if self.loss_scale:
            self.loss_scale.update(torch.zeros_like(norm) if skipped is None else skipped)
        return norm

    def settle(self) -> None:
        """Raise the failure of the last step, if it has not been raised; waits until the device has done this step."""
        unread, self._unread = self._unread, None
        if unread is not None and self._skipped is not None and self._skipped.wait():
            self._expect_retry(unread.norm.item(), unread.scale.item() if unread.scale is not None else 0.0, unread.blame)

    def _expect_retry(self, norm: float, scale: float, blame: Callable[[], str]) -> None:
        """Raise ``NumericalError`` for gradients that are not finite, unless a smaller loss scale may help."""
        at = ""
        if self.loss_scale is not None:
            if self.loss_scale.fixed is None and scale > 1:
                return
            at = f" at the {'smallest' if self.loss_scale.fixed is None else 'fixed'} loss scale {scale:g}"
        why = blame()
        raise NumericalError(f"the gradient norm is {norm}{at}; the optimizer did not move{why and f'; {why}'}")

    def state_dict(self) -> StateDict:
        """Return the loss scale, if there is one."""
        return self.loss_scale.state_dict() if self.loss_scale else {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; a run in another precision, or with a fixed scale, has no use for it."""
        if self.loss_scale:
            self.loss_scale.load_state_dict(state)


def can_skip(optimizer: Optimizer) -> bool:
    """Check whether the optimizer leaves weights and state unchanged on its own where ``found_inf`` is 1, as torch's fused ones."""
    groups = optimizer.param_groups
    is_able = getattr(optimizer, "_step_supports_amp_scaling", False) and all(group.get("fused", True) for group in groups)
    return is_able and not any(isinstance(p, DTensor) for group in groups for p in group["params"][:1])


def step_unless(skipped: Tensor | None, optimizer: Optimizer) -> None:
    """Step, unless ``skipped``, a scalar on the device that only the device reads, is 1; None always steps."""
    if skipped is None:
        optimizer.step()
        return
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # the protocol of torch.amp.GradScaler
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
