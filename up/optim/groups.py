"""Parameter groups: learning rates and weight decays by ``pconfig`` and ``special_param_group``.

The weight decay of a parameter is set by the first of these that has one: its special group, ``nodecay``, the rule of its
module's class, the optimizer. Its learning rate: its special group, the rule of its class, ``layer_decay`` or
``discriminative``, the optimizer. All are relative to the optimizer's, as ``lr_scale``: a single schedule sets every group.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer

from up.config.wording import unknown
from up.errors import Problem, UserError
from up.schema.trainer import ParamConfig, ParamRule, SpecialGroup
from up.text import did_you_mean, some_of
from up.types import Kwargs, Record

TENSORS_PER_LAYER = 12  # timm's choice for a network without group_matcher


class GroupRow(NamedTuple):
    """A parameter group, for the start log."""

    rule: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


def class_rules(pconfig: ParamConfig) -> dict[str, ParamRule]:
    """Return the rules of ``pconfig`` for classes of modules, by name: ``bn_w``, ``linear_b``, …"""
    fields = {name: getattr(pconfig, name) for name in ParamConfig.model_fields}
    return {name: rule for name, rule in fields.items() if isinstance(rule, ParamRule)}


def option_problems(
    pconfig: ParamConfig, special: Sequence[SpecialGroup], optimizer: str, known: Collection[str]
) -> Iterator[Problem]:
    """Find options of the groups that are not among the ``known`` settings of the ``optimizer``, and negative values."""
    written: dict[str, Kwargs] = {f"pconfig.{name}.kwargs": rule.kwargs for name, rule in class_rules(pconfig).items()}
    for index, group in enumerate(special):
        written[f"special_param_group.{index}"] = group.options
    for path, options in written.items():
        for name, value in options.items():
            if name not in known:
                yield Problem(unknown(optimizer, name, list(known), "argument"), key=f"{path}.{name}", about_key=True)
            elif name in ("lr", "weight_decay") and value < 0:
                yield Problem(got=value, expected="at least 0", key=f"{path}.{name}")


def build_groups(
    model: nn.Module, defaults: Kwargs, *, pconfig: ParamConfig, special: Sequence[SpecialGroup] = (), base_lr: float
) -> list[Record]:
    """Build parameter groups for an optimizer, one for each distinct setting, in the order of the model.

    ``defaults`` are the optimizer's own settings. Frozen parameters are left out; shared ones are in one group. Each group
    has ``rule`` (its origin), ``lr_scale`` and ``lr`` = ``base_lr`` · ``lr_scale``. Warns of special groups and entries of
    ``nodecay`` that are part of no name.
    """
    _warn_of_unused(model, "special_param_group", [group.key for group in special])
    _warn_of_unused(model, "pconfig.nodecay", [part for part in pconfig.nodecay if part != "ndim_is1"])
    rules = class_rules(pconfig)
    scales = _scales_by_depth(model, pconfig, base_lr)
    groups: dict[tuple[float, str], Record] = {}
    for name, class_rule, p in _trainable(model):
        labels, options = _class_setting(rules, class_rule)
        if any((p.ndim <= 1) if part == "ndim_is1" else (part in name) for part in pconfig.nodecay):
            labels, options = "nodecay", {**options, "weight_decay": 0.0}
        group_of_name = next((group for group in special if group.key in name), None)
        if group_of_name is not None:
            labels, options = f"special {group_of_name.key!r}", {**options, **group_of_name.options}
        lr = options.pop("lr", None)
        depth, scale = scales.get(name, ("", 1.0)) if lr is None else ("", _relative(lr, base_lr))
        distinct = {key: value for key, value in options.items() if key in defaults and defaults[key] != value}
        group = groups.setdefault(
            (scale, repr(sorted(distinct.items()))),
            {"params": [], "lr": base_lr * scale, "lr_scale": scale, "rule": {}, **distinct},
        )
        group["params"].append(p)
        group["rule"].setdefault(depth, {})[labels] = None
    if not groups:
        total = sum(1 for _ in model.parameters())
        raise UserError(f"nothing to train: all {total} parameters are frozen. Freeze fewer layers.")
    return [{**group, "rule": _label(group["rule"])} for group in groups.values()]


def group_table(optimizer: Optimizer, model: nn.Module | None = None) -> list[GroupRow]:
    """List the groups of the optimizer; with ``model``, the last row has the frozen parameters, which are in no group."""
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
    """Format ``bn_w, bn_b``, or ``layer 3: bn_w, bn_b`` if the learning rate depends on the depth."""
    by_depth = [f"{depth}: {', '.join(names)}" if depth else ", ".join(names) for depth, names in rules.items()]
    return "; ".join(by_depth)


def _trainable(model: nn.Module) -> Iterator[tuple[str, str | None, Tensor]]:
    """List (name, rule of its module's class, parameter), each parameter once, in the order of ``named_parameters``."""
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
    """Name the class of a module: ``bn`` normalizes over the batch, ``ln`` over a sample (Layer-, Group-, RMS-, InstanceNorm)."""
    if isinstance(module, _BatchNorm):
        return "bn"
    if isinstance(module, nn.GroupNorm | _InstanceNorm) or hasattr(module, "normalized_shape"):
        return "ln"
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        return "linear"
    return "conv" if isinstance(module, _ConvNd) else None


def _class_setting(rules: Mapping[str, ParamRule], name: str | None) -> tuple[str, dict[str, float]]:
    rule = rules.get(name or "")
    return ("default", {}) if rule is None else (str(name), dict(rule.kwargs))


def _scales_by_depth(model: nn.Module, pconfig: ParamConfig, base_lr: float) -> dict[str, tuple[str, float]]:
    """Map names to a label of the depth and its ``lr_scale``: ``lr`` · ``value`` ** (n - 1 - k) in layer k of n (BEiT, Bao et al.
    2022, appendix), ``lr`` / ``factor`` ** k in block k from the head (ULMFiT, Howard and Ruder 2018, section 3.2)."""
    if pconfig.discriminative is not None:
        blocks, factor = depth_blocks(model, pconfig.discriminative.blocks), pconfig.discriminative.factor
        return {name: (f"block {block}", factor**-block) for name, block in blocks.items()}
    if pconfig.layer_decay is not None:
        ids, rule = layer_ids(model), pconfig.layer_decay
        top = max(ids.values(), default=0)
        first = 1.0 if rule.base_lr is None else _relative(rule.base_lr, base_lr)
        return {name: (f"layer {layer}", first * rule.value ** (top - layer)) for name, layer in ids.items()}
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


def module_depths(model: nn.Module) -> dict[str, int]:
    """Map parameter names to 0 for the first module with parameters, 1 for the next, and so on to the head.

    The order is that of ``named_parameters``; weight and bias of a module share a depth.
    """
    modules: dict[str, int] = {}
    return {name: modules.setdefault(name.rpartition(".")[0], len(modules)) for name, _ in model.named_parameters()}


def depth_blocks(model: nn.Module, blocks: int) -> dict[str, int]:
    """Map parameter names to blocks, 0 nearest the head: the depths in ``blocks`` equal runs."""
    depths = module_depths(model)
    total = max(depths.values()) + 1
    return {name: (total - 1 - depth) * blocks // total for name, depth in depths.items()}


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Map parameter names to layers, 0 at the stem, as timm counts them.

    The outermost module with timm's ``group_matcher`` defines its layers; parameters outside it (the head) are the last
    layer. Any other network is cut in the order of its parameters into layers of twelve tensors; its last module is the
    head.
    """
    names = [name for name, _ in model.named_parameters()]
    matchers = ((name, getattr(module, "group_matcher", None)) for name, module in model.named_modules())
    trunk, matcher = next(((name, matcher) for name, matcher in matchers if callable(matcher)), ("", None))
    if matcher is not None:
        from timm.models import group_parameters  # a network with a matcher has imported timm before

        inside = group_parameters(model.get_submodule(trunk), matcher(coarse=False), reverse=True)
        ids = {f"{trunk}.{name}" if trunk else name: layer for name, layer in inside.items()}
    else:
        head = f"{names[-1].partition('.')[0]}." if names else ""
        body = [name for name in names if not name.startswith(head)]
        ids = {name: position // TENSORS_PER_LAYER for position, name in enumerate(body)}
    last = max(ids.values(), default=-1) + 1
    return {name: ids.get(name, last) for name in names}
