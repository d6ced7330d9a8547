"""Averaged weights: evaluation and export use the mean of the last weights instead of the last ones (Polyak 1992)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from up.config.argument import AtLeast1, Fraction
from up.config.checked import checked
from up.engine.shards import is_shared, local
from up.errors import UserError
from up.text import count, some_of
from up.types import Kwargs

_START = "Start from its weights with saver.pretrain_model."


class Ema:
    """Exponential moving average of the floating tensors of a model, BatchNorm statistics included; counters are copied.

    After step t (from 0) the average moves by 1 - d towards the model: ``linear`` d = min(``decay``, (1 + t) /
    (``warmup`` + t)), ``exp`` d = ``decay`` (1 - e^(-t / 2000)). It moves after every ``inner_T``-th step and starts
    from the weights that ``model`` has now: load them first. ``model`` is the bare network, not its DDP wrapper. Raises
    ``UserError`` for a setting out of range.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        ema_type: Literal["linear", "exp"] = "linear",
        decay: Fraction,
        inner_T: AtLeast1 = 1,
        warmup: AtLeast1 = 1,
    ) -> None:
        self._type = ema_type
        self._decay = decay
        self._inner = inner_T
        self._warmup = warmup
        self._average = _copied(_tensors_of(model))

    def decay_at(self, t: int) -> float:
        """Return d of step ``t``, from 0."""
        if self._type == "exp":
            return self._decay * (1 - math.exp(-t / 2000))
        return min(self._decay, (1 + t) / (self._warmup + t))

    def moves_at(self, step: int) -> bool:
        """Check whether the average moves after ``step`` steps."""
        return step % self._inner == 0

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the ``model`` after ``step`` steps; one operation for all averages, and one for all counters."""
        if not self.moves_at(step):
            return
        pairs = self._pairs(model)
        averaged, counted = ([pair for pair in pairs if pair[0].is_floating_point() == is_float] for is_float in (True, False))
        torch._foreach_lerp_(*_columns(averaged), 1 - self.decay_at(step - 1))
        if counted:
            torch._foreach_copy_(*_columns(counted))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Put the average in the place of the model's weights; afterwards the weights are back, bit for bit.

        Storages are swapped: nothing is copied (0.5 ms for a ResNet-18, on any device), and holders of the parameters
        (an optimizer, DDP, a compiled forward) keep them. Do not train or save inside the block.
        """
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average itself, not a copy."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state_dict()``. Raises ``UserError`` for missing, unknown and misshaped tensors."""
        _check_tensors(self._average, state)
        for name, mine in self._average.items():
            mine.copy_(state[name])

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        shared = is_shared(model)
        for mine, theirs in self._pairs(model):
            if shared:  # fsdp gathers from its own memory: swap the values instead
                kept = theirs.clone()
                theirs.copy_(mine)
                mine.copy_(kept)
            else:
                mine.data, theirs.data = theirs.data, mine.data

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Pair average and weight of this rank, each tensor once even if several names share it."""
        seen: set[int] = set()
        pairs = []
        for name, theirs in _tensors_of(model).items():
            if id(theirs) not in seen:
                seen.add(id(theirs))
                pairs.append((self._average[name], theirs))
        return [(local(mine), local(theirs)) for mine, theirs in pairs] if is_shared(model) else pairs


class NoEma:
    """No averaging."""

    def moves_at(self, step: int) -> bool:
        """Return False: there is no average."""
        return False

    def update(self, model: nn.Module, step: int) -> None:
        """Do nothing."""

    def applied_to(self, model: nn.Module) -> AbstractContextManager[None]:
        """Leave the model unchanged."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Ignore the average of a checkpoint."""


def build_ema(
    model: nn.Module, *, enable: bool = True, ema_type: Literal["linear", "exp"] = "linear", kwargs: Kwargs | None = None
) -> Ema | NoEma:
    """Build the average that the section ``ema`` asks for: ``kwargs`` are ``decay``, ``inner_T``, ``warmup``."""
    if not enable:
        return NoEma()
    if "decay" not in (kwargs or {}):
        raise UserError("ema.kwargs.decay is missing: expected a number from 0 to 1, say 0.9999")
    return Ema(model, ema_type=ema_type, **(kwargs or {}))


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    # read each time (0.5 ms for a ResNet-50): moving a model to a device replaces its buffers
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    copies: dict[int, Tensor] = {}
    for name, value in tensors.items():
        # 1 - decay is far below the resolution of a 16-bit weight: its average would never move
        assert value.dtype not in (torch.float16, torch.bfloat16), f"{name} is {value.dtype}, EMA needs float32 weights"
        copies.setdefault(id(value), value.detach().clone())
    return {name: copies[id(value)] for name, value in tensors.items()}


def _check_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if expected and not state:
        raise UserError(
            "the checkpoint has no EMA state, it was made with ema.enable: false",
            fix="Set that, or start from its weights with saver.pretrain_model.",
        )
    missing, unknown = [name for name in expected if name not in state], [name for name in state if name not in expected]
    if missing:
        raise UserError(
            f"the EMA state has no tensor for {some_of(missing)} ({count(len(missing), 'tensor')} of the model)", fix=_START
        )
    if unknown:
        raise UserError(f"the EMA state has tensors that the model lacks: {some_of(unknown)}", fix=_START)
    for name, mine in expected.items():
        if state[name].shape != mine.shape:
            raise UserError(f"EMA state: {name} is {tuple(state[name].shape)}, expected {tuple(mine.shape)} as in the model")
