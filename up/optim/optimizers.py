"""Optimizers by name: ours, those of torch.optim by class name, those of timm by timm's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from torch import nn
from torch.optim import Optimizer

from up.config.argument import LARGEST_LR
from up.config.contract import Contract
from up.config.section import read_section
from up.config.signature import signature_of
from up.config.wording import unknown
from up.errors import UserError
from up.optim.fused import is_fusible, keep_implementation, keep_order
from up.optim.groups import build_groups, option_problems
from up.registry import Registry
from up.schema.trainer import ParamConfig, SpecialGroup
from up.types import Kwargs, Record

# optimizers that need more than one forward and backward pass per step
_UNUSABLE = {
    "LBFGS": "evaluates the loss several times a step",
    "SparseAdam": "takes sparse gradients only",
    "adahessian": "needs second derivatives",
}


@cache
def _of_torch() -> dict[str, type[Optimizer]]:
    found = {name: entry for name, entry in vars(torch.optim).items() if inspect.isclass(entry)}
    return {name: entry for name, entry in found.items() if issubclass(entry, Optimizer) and entry is not Optimizer}


@cache
def _find(name: str) -> Callable[..., Optimizer] | None:
    """Find an optimizer of torch or timm. Raises ``UserError`` for one that cannot be used here."""
    if name in _UNUSABLE:
        raise UserError(f"the optimizer {name!r} cannot be used: it {_UNUSABLE[name]}. Expected a first-order optimizer.")
    if name in _of_torch():
        return _of_torch()[name]
    import timm.optim  # two seconds: only for a name that torch does not have

    if name not in timm.optim.list_optimizers():
        return None
    info = timm.optim.get_optimizer_info(name)
    try:
        found: Callable[..., Optimizer] = timm.optim.get_optimizer_class(name, bind_defaults=False)
    except (ImportError, AssertionError) as error:
        library = str(info.opt_class).partition(".")[0]
        raise UserError(f"the optimizer {name!r} needs {library} and a CUDA device: {error}") from error
    # as timm's factory: the entry's settings, and a momentum of 0.9 if there is one
    bound = {**({"momentum": 0.9} if info.has_momentum else {}), **(info.defaults or {})}
    return partial(found, **bound) if bound else found


def _names() -> Iterable[str]:
    import timm.optim

    ours = {*_of_torch(), "LAMB", "LARS"}
    shadowed = {name.lower() for name in ours}  # `adamw` works too, but lists have AdamW
    return {*_of_torch(), *(name for name in timm.optim.list_optimizers() if name not in shadowed)} - set(_UNUSABLE)


OPTIMIZERS = Registry(
    "optimizer",
    {"LAMB": "up.optim.lamb:LAMB", "LARS": "timm.optim:Lars", "Muon": "up.optim.muon:Muon"},
    others=_find,
    other_names=_names,
    contract=Contract("docs/add_a_part.md", base=lambda: (Optimizer,)),
)


def build_optimizer(
    model: nn.Module,
    type: str,
    *,
    pconfig: Kwargs | ParamConfig | None = None,
    special_param_group: Sequence[Kwargs | SpecialGroup] | None = None,
    table: Registry = OPTIMIZERS,
    **kwargs: object,
) -> Optimizer:
    """Build the optimizer ``type`` of ``table`` over the trainable parameters of ``model``, in few groups.

    ``kwargs`` are the optimizer's own. ``pconfig`` and ``special_param_group`` are those of the YAML (docs/config.md).
    ``group["lr_scale"]`` is the learning rate of a group relative to ``lr``, which ``up.optim.set_lr`` keeps.
    Raises ``UserError`` for unknown names and for settings that the optimizer does not take.
    """
    make = table.get(type)
    takes = _settings_of(make)
    for name in kwargs:
        if name not in takes:
            raise UserError(unknown(type, name, list(takes), "argument"), key=name)
    rules = read_section(ParamConfig, pconfig or {}, "pconfig")
    special = [
        read_section(SpecialGroup, group, f"special_param_group.{index}") for index, group in enumerate(special_param_group or ())
    ]
    problems = list(option_problems(rules, special, type, takes))
    if problems:
        raise UserError.of(problems)
    groups = build_groups(model, {**takes, **kwargs}, pconfig=rules, special=special, base_lr=lr_of(type, kwargs, table))
    fused = is_fusible(make, model, groups, kwargs)
    try:
        made: Optimizer = make(groups, **kwargs, **({"fused": True} if fused else {}))
    except (ValueError, TypeError) as error:
        raise UserError(f"{type}: {error}") from error
    keep_implementation(made)
    if fused:
        keep_order(made)
    return made


def lr_of(type: str, kwargs: Kwargs, table: Registry = OPTIMIZERS) -> float:
    """Return the learning rate in the ``kwargs`` of an optimizer, or its default.

    Raises ``UserError`` if there is neither: an optimizer that chooses its own learning rate follows no schedule.
    """
    lr = {**_settings_of(table.get(type)), **kwargs}.get("lr")
    if not isinstance(lr, int | float):  # timm marks a required one by an object
        raise UserError(f"is missing ({type} would choose its own, which no schedule can follow)", key="lr", fix="Set lr.")
    if not 0 <= lr <= LARGEST_LR:
        raise UserError(got=lr, expected=f"0 or more, at most {LARGEST_LR:g}", key="lr")
    return float(lr)


def set_lr(optimizer: Optimizer, lr: float) -> float:
    """Set the learning rate of every group to ``lr_scale`` times ``lr`` and return ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def _settings_of(make: Callable[..., Optimizer]) -> Record:
    """Map the names of an optimizer's settings to their defaults."""
    return {name: None if each.required else each.default for name, each in signature_of(make).parameters.items()}
