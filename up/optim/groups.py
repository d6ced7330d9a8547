"""Which parameter trains with which learning rate and weight decay: ``pconfig`` and ``special_param_group``.

A parameter's weight decay comes from the first of these that says something: its special group, ``nodecay``, the rule
of its module's class, the optimizer's own setting. Its learning rate comes from its special group, the rule of its
class, ``layer_decay`` or ``discriminative``, the optimizer's own. All rates are kept relative to the optimizer's, as
``lr_scale``, so that one schedule drives every group.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer

from up.errors import UserError
from up.optim.depth import depth_blocks, layer_ids
from up.text import did_you_mean, some_of

CLASS_RULES = ("bn_b", "bn_w", "ln_b", "ln_w", "linear_b", "linear_w", "conv_b", "conv_w")
RULES = (*CLASS_RULES, "linear", "nodecay", "layer_decay", "discriminative")

Options = Mapping[str, Any]
SpecialGroups = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LayerDecay:
    """Layer k of n trains with ``base_lr`` · ``value`` ** (n - 1 - k) (BEiT, Bao et al. 2022, appendix)."""

    value: float
    base_lr: float | None = None


@dataclass(frozen=True)
class Discriminative:
    """Block k from the head trains ``factor`` ** k times slower (ULMFiT, Howard and Ruder 2018, section 3.2)."""

    blocks: int = 3
    factor: float = 2.6


@dataclass(frozen=True)
class Rules:
    """``pconfig``, checked: options by rule of class, parts of names without decay, learning rates by depth."""

    by_class: Mapping[str, Options] = field(default_factory=dict)
    nodecay: tuple[str, ...] = ()
    depth: LayerDecay | Discriminative | None = None


class GroupRow(NamedTuple):
    """One line of the table that a run prints at its start."""

    rule: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


def build_groups(
    model: nn.Module, defaults: Options, *, rules: Rules, special: SpecialGroups = (), base_lr: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one for each distinct setting, in the order of the model.

    ``defaults`` are the optimizer's own settings. Frozen parameters are left out and shared ones stand once. Each group
    carries ``rule`` (what made it), ``lr_scale`` and ``lr`` = ``base_lr`` · ``lr_scale``. Warns about special groups
    and entries of ``nodecay`` that are part of no name.
    """
    _warn_of_unused(model, "special_param_group", [group["key"] for group in special])
    _warn_of_unused(model, "pconfig.nodecay", [part for part in rules.nodecay if part != "ndim_is1"])
    scales = _scales_by_depth(model, rules.depth, base_lr)
    groups: dict[tuple[float, str], dict[str, Any]] = {}
    for name, class_rule, p in _trainable(model):
        rule, options = _setting(name, class_rule, p, rules, special)
        lr = options.pop("lr", None)
        depth, scale = scales.get(name, ("", 1.0)) if lr is None else ("", _relative(lr, base_lr))
        distinct = {key: value for key, value in options.items() if key in defaults and defaults[key] != value}
        group = groups.setdefault(
            (scale, repr(sorted(distinct.items()))),
            {"params": [], "lr": base_lr * scale, "lr_scale": scale, "rule": {}, **distinct},
        )
        group["params"].append(p)
        group["rule"].setdefault(depth, {})[rule] = None
    if not groups:
        total = sum(1 for _ in model.parameters())
        raise UserError(f"nothing to train: all {total} parameters are frozen. Freeze fewer layers.")
    return [{**group, "rule": _label(group["rule"])} for group in groups.values()]


def group_table(optimizer: Optimizer, model: nn.Module | None = None) -> list[GroupRow]:
    """What each group holds and how it trains; with ``model``, the last row is what is in no group: the frozen rest."""
    rows = [
        GroupRow(
            group.get("rule", "default"),
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
            float(group["lr"]),
            float(group.get("weight_decay", 0.0)),
        )
        for group in optimizer.param_groups
    ]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    frozen = [p for p in model.parameters() if id(p) not in trained] if model is not None else []
    if frozen:
        rows.append(GroupRow("frozen", len(frozen), sum(p.numel() for p in frozen), 0.0, 0.0))
    return rows


def _label(rules: Mapping[str, Iterable[str]]) -> str:
    """``bn_w, bn_b`` or, where the rate depends on the depth, ``layer 3: bn_w, bn_b``."""
    by_depth = [f"{depth}: {', '.join(names)}" if depth else ", ".join(names) for depth, names in rules.items()]
    return "; ".join(by_depth)


def _trainable(model: nn.Module) -> Iterator[tuple[str, str | None, Tensor]]:
    """(name, rule of its module's class, parameter), each parameter once, in the order of ``named_parameters``."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        kind = _kind(module)
        for name, p in module.named_parameters(recurse=False):
            if id(p) in seen or not p.requires_grad:
                continue
            seen.add(id(p))
            suffix = "b" if name.endswith("bias") else "w" if name.endswith("weight") else None
            yield f"{prefix}.{name}" if prefix else name, f"{kind}_{suffix}" if kind and suffix else None, p


def _kind(module: nn.Module) -> str | None:
    """``bn`` normalises over the batch, ``ln`` over one sample (LayerNorm, GroupNorm, RMSNorm, InstanceNorm)."""
    if isinstance(module, _BatchNorm):
        return "bn"
    if isinstance(module, nn.GroupNorm | _InstanceNorm) or hasattr(module, "normalized_shape"):
        return "ln"
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        return "linear"
    return "conv" if isinstance(module, _ConvNd) else None


def _setting(name: str, class_rule: str | None, p: Tensor, rules: Rules, special: SpecialGroups) -> tuple[str, dict[str, Any]]:
    """What made a parameter's setting, and the setting."""
    labels: list[str] = []
    options: dict[str, Any] = {}
    if class_rule in rules.by_class:
        labels.append(str(class_rule))
        options |= rules.by_class[str(class_rule)]
    if any((p.ndim <= 1) if part == "ndim_is1" else (part in name) for part in rules.nodecay):
        labels = ["nodecay"]
        options["weight_decay"] = 0.0
    for group in special:
        if group["key"] in name:
            labels = [f"special {group['key']!r}"]
            options |= {key: value for key, value in group.items() if key != "key"}
            break
    return " + ".join(labels) or "default", options


def _scales_by_depth(model: nn.Module, depth: LayerDecay | Discriminative | None, base_lr: float) -> dict[str, tuple[str, float]]:
    """Name -> what to call the depth, and ``lr_scale`` there."""
    if isinstance(depth, Discriminative):
        blocks = depth_blocks(model, depth.blocks)
        return {name: (f"block {block}", depth.factor**-block) for name, block in blocks.items()}
    if isinstance(depth, LayerDecay):
        ids = layer_ids(model)
        top = max(ids.values(), default=0)
        first = 1.0 if depth.base_lr is None else _relative(depth.base_lr, base_lr)
        return {name: (f"layer {layer}", first * depth.value ** (top - layer)) for name, layer in ids.items()}
    return {}


def _relative(lr: float, base_lr: float) -> float:
    if base_lr == 0:
        raise UserError(f"a group's lr ({lr}) is kept relative to lr, which is 0. Give the optimizer an lr above 0.")
    return lr / base_lr


def _warn_of_unused(model: nn.Module, key: str, parts: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            near = did_you_mean(part, {word for name in names for word in (name, *name.split("."))})
            warnings.warn(
                f"{key}: no parameter's name contains {part!r}.{near}{'' if near else f' There are {some_of(names, 5)}.'}",
                stacklevel=4,
            )
