"""LoRA: low-rank updates of the weights of frozen layers (Hu et al. 2022, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import cast

from torch import Tensor, nn

from up.errors import UserError
from up.models.patterns import any_of, require_matches

RANK_KEY, TARGETS_KEY = "finetune.lora.rank", "finetune.lora.targets"
_A, _B, _SCALE = "lora_A", "lora_B", "lora_scale"
_WithWeights = nn.Linear | nn.Conv1d | nn.Conv2d


class LowRank(nn.Module):
    """Mixin of a linear or convolutional layer whose ``weight`` is W + scale * B A, reshaped to W.

    W is the frozen parameter ``weight``, which keeps its name in the state dict; ``lora_A`` (rank, in), ``lora_B``
    (out, rank) and the scale stand beside it. All code that reads ``layer.weight`` sees the sum, so attention that passes
    its weights to a fused kernel is trained too, and merged and unmerged layers compute the same. The sum costs
    rank * in * out multiply-adds a step, about 1 % of the layer for 6,000 tokens.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: Tensor

    @property
    def weight(self) -> Tensor:
        """W + scale * B A."""
        base = cast("Tensor", self._parameters["weight"])
        return base + (self.lora_scale * (self.lora_B @ self.lora_A)).view(base.shape)


def add_lora(module: nn.Module, *, rank: int = 64, alpha: float | None = None, targets: Sequence[str] = ()) -> list[str]:
    """Freeze ``module`` and give its layers trainable low-rank updates; returns the paths of those layers.

    - ``rank``: rank of an update, at most the smaller side of the layer's matrix.
    - ``alpha``: updates are scaled by alpha / rank. Default: ``rank``, a scale of 1.
    - ``targets``: patterns (prefixes, or ``r:`` and a regular expression) of layers. Default: all linear layers, in a
      transformer those of attention and MLP. Convolutions have to be named.

    B starts at zero, so the outputs do not change at first. A is drawn from torch's global generator. Raises ``UserError``
    for a pattern that matches no such layer, and for a network without linear layers if none is named.
    """
    if rank < 1:
        raise UserError(got=rank, expected="a whole number of at least 1", key=RANK_KEY)
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, _WithWeights)}
    require_matches(targets, layers, key=TARGETS_KEY)
    is_target = any_of(targets, key=TARGETS_KEY)
    chosen = [path for path, layer in layers.items() if (is_target(path) if targets else isinstance(layer, nn.Linear))]
    if not chosen:
        raise UserError(
            f"{type(module).__name__} has no linear layers",
            fix="Name convolutions, such as targets: ['r:conv'], or take another strategy.",
            key=TARGETS_KEY,
        )
    module.requires_grad_(False)
    for path in chosen:
        _extend(layers[path], rank, alpha)
    module.train(module.training)  # frozen norms go to evaluation mode
    return chosen


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the low-rank updates in a state dict: the names that remain are those of the plain network."""
    merged = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in (_A, _B, _SCALE)}
    for name in state.keys() - merged.keys():
        layer, _, kind = name.rpartition(".")
        if kind == _A:
            prefix = f"{layer}." if layer else ""
            base = merged[f"{prefix}weight"]
            update = state[f"{prefix}{_SCALE}"] * (state[f"{prefix}{_B}"] @ state[name])
            merged[f"{prefix}weight"] = base + update.view(base.shape)
    return merged


def _extend(layer: nn.Module, rank: int, alpha: float | None) -> None:
    weight = cast("Tensor", layer.weight)
    out, inner = weight.shape[0], weight[0].numel()
    rank_here = min(rank, out, inner)
    a = nn.Parameter(weight.new_empty(rank_here, inner))
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # as the authors' code; with B = 0 the scale of A only affects the first steps
    layer.register_parameter(_A, a)
    layer.register_parameter(_B, nn.Parameter(weight.new_zeros(out, rank_here)))
    layer.register_buffer(_SCALE, weight.new_tensor(1.0 if alpha is None else alpha / rank))
    # Only the class changes: the layer keeps its name, its hooks, and its weight's name in the state dict.
    layer.__class__ = _class_of(cast(type, type(layer)))


@cache
def _class_of(kind: type) -> type:
    return type(f"Lora{kind.__name__}", (LowRank, kind), {})
