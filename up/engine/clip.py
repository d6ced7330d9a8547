"""Gradient clipping: limit the global norm of the gradients of a step.

A policy measures first and clips later, so that a norm that is not finite can stop the step before it enters any running
limit. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import AllowInfNan, Field
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from up.config.argument import Positive
from up.config.checked import checked
from up.engine.hooks import Hook, StepReport
from up.engine.shards import full, local
from up.errors import UserError
from up.tracking.log import LOGGER
from up.types import StateDict

NormType: TypeAlias = Annotated[float, AllowInfNan(), Field(gt=0)]  # .inf: the largest gradient
Momentum: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class Clip:
    """A clipping policy: this one measures the global norm, which the finite check needs, and leaves the gradients alone."""

    is_stateless = True
    """Whether a norm that is not finite may pass through ``clip_``, where the device skips the step."""
    display_freq: int | None = None
    """Steps between log lines with the norm and the limit; None for no lines."""

    @checked
    def __init__(self, *, norm_type: NormType = 2.0) -> None:
        self._norm_type = norm_type

    @property
    def is_global_norm_of_step(self) -> bool:
        """Whether ``norm`` is the Euclidean norm of the gradients and the optimizer gets them unchanged."""
        return type(self).clip_ is Clip.clip_ and self._norm_type == 2.0

    def limit(self) -> float | None:
        """Return the largest norm that the last gradients could keep; None: any. Waits for the device."""
        return None

    def norm(self, grads: Sequence[Tensor]) -> Tensor:
        """Return the global norm of order ``norm_type``, a scalar on the device of the gradients."""
        if not grads or isinstance(grads[0], DTensor):
            return full(get_total_norm(grads, self._norm_type))
        # as get_total_norm, which sorts the gradients by device and type before
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([*grads], self._norm_type)), self._norm_type)
        return norm

    def clip_(self, grads: Sequence[Tensor], norm: Tensor) -> None:
        """Scale the gradients, whose finite global norm is ``norm``, in place."""

    def state_dict(self) -> StateDict:
        """Return the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; the state of another policy changes nothing."""


class ClipNorm(Clip):
    """Scales gradients whose global norm is above ``max_norm`` down to it (Pascanu et al. 2013)."""

    @checked
    def __init__(self, *, max_norm: Positive, norm_type: NormType = 2.0) -> None:
        super().__init__(norm_type=norm_type)
        self._max_norm = max_norm

    def limit(self) -> float | None:
        return self._max_norm

    def clip_(self, grads: Sequence[Tensor], norm: Tensor) -> None:
        _scale_down(grads, norm, self._max_norm)


class RunningClip(Clip):
    """Clips to a limit M that follows ``tolerance`` · norm of the gradients; M moves before it clips.

    ``momentum`` None is the average of all: M ← M · n/(n+1) + tol · ‖g‖/(n+1), n from 1, so that ``max_norm``, where M
    begins, counts as one gradient. Otherwise M ← m · M + (1 - m) · tol · ‖g‖. Without ``max_norm`` the first gradient
    sets M.
    """

    is_stateless = False

    @checked
    def __init__(
        self, *, max_norm: Positive | None, norm_type: NormType = 2.0, momentum: Momentum | None = None, tolerance: Positive = 1.0
    ) -> None:
        super().__init__(norm_type=norm_type)
        self._momentum = momentum
        self._tolerance = tolerance
        self._limit: Tensor | float | None = max_norm
        self._count = 0 if max_norm is None else 1

    def limit(self) -> float | None:
        return None if self._limit is None else float(self._limit)

    def clip_(self, grads: Sequence[Tensor], norm: Tensor) -> None:
        allowed = self._tolerance * norm
        if self._limit is None:
            self._limit = allowed
        else:
            keep = self._count / (self._count + 1) if self._momentum is None else self._momentum
            # A tensor also after a resume, which restores a number: the sum of a number is rounded otherwise.
            limit = self._limit if isinstance(self._limit, Tensor) else torch.full_like(allowed, self._limit)
            self._limit = limit * keep + allowed * (1 - keep)
        self._count += 1
        _scale_down(grads, norm, self._limit)

    def state_dict(self) -> StateDict:
        """Return M and the number of gradients in it; waits for the device."""
        return {"limit": self.limit(), "count": self._count}

    def load_state_dict(self, state: StateDict) -> None:
        if state:
            self._limit, self._count = state["limit"], state["count"]


class NormLog(Hook):
    """Logs the global norm of the gradients before clipping, and its limit, every ``display_freq`` steps of a policy."""

    def __init__(self, policy: Clip) -> None:
        self.policy = policy

    def on_step(self, report: StepReport) -> None:
        freq = self.policy.display_freq
        if freq and report.step % freq == 0:
            limit = self.policy.limit()
            shown = "none yet" if limit is None else f"{limit:.4g}"
            LOGGER.info("gradients at step %d: norm %.4g, limit %s", report.step, report.scalars["grad_norm"], shown)


@checked
def grad_clipper(
    *,
    mode: Literal["pre_defined", "average", "moving_average"] = "pre_defined",
    max_norm: Positive | None = None,
    norm_type: NormType = 2.0,
    momentum: Momentum = 0.9,
    tolerance: Positive = 1.0,
    display_freq: Annotated[int, Field(ge=1)] | None = None,
) -> Clip:
    """Build the policy that the hook ``grad_clipper`` of a config asks for.

    ``norm_type`` .inf is the largest gradient. ``momentum`` counts in mode ``moving_average``, ``tolerance`` there and in
    ``average``. ``display_freq``: steps between log lines that give the norm and its limit. Raises ``UserError`` for values
    out of range.
    """
    policy: Clip
    if mode == "pre_defined":
        if max_norm is None:
            raise UserError("is missing: mode pre_defined needs it", key="max_norm", fix="Set it, such as 1.0.")
        policy = ClipNorm(max_norm=max_norm, norm_type=norm_type)
    else:
        kept = momentum if mode == "moving_average" else None
        policy = RunningClip(max_norm=max_norm, norm_type=norm_type, momentum=kept, tolerance=tolerance)
    policy.display_freq = display_freq
    return policy


def _scale_down(grads: Sequence[Tensor], norm: Tensor, limit: Tensor | float) -> None:
    # torch.nn.utils.clip_grads_with_norm_ would fetch a limit that is a tensor to the host
    if grads:
        torch._foreach_mul_([local(grad) for grad in grads], (limit / (norm + 1e-6)).clamp(max=1.0))
