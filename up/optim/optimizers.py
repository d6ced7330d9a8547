"""Optimizers by name: ours, every one of torch.optim by its class name, every one of timm by timm's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from torch import nn
from torch.optim import Optimizer

from up.config.contract import Contract
from up.config.section import read_section
from up.config.signature import signature_of
from up.config.wording import unknown
from up.errors import UserError
from up.optim.groups import build_groups, option_problems
from up.registry import Registry
from up.schema.trainer import ParamConfig, SpecialGroup
from up.types import Kwargs, Record

# what no training loop of one forward and one backward a step can drive
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
    """The optimizer of torch or timm that ``name`` means; raises ``UserError`` for one that cannot be used here."""
    if name in _UNUSABLE:
        raise UserError(f"the optimizer {name!r} cannot be used: it {_UNUSABLE[name]}. Expected a first-order optimizer.")
    if name in _of_torch():
        return _of_torch()[name]
    import timm.optim  # two seconds: only for a name that torch does not know

    if name not in timm.optim.list_optimizers():
        return None
    info = timm.optim.get_optimizer_info(name)
    try:
        found: Callable[..., Optimizer] = timm.optim.get_optimizer_class(name, bind_defaults=False)
    except (ImportError, AssertionError) as error:
        library = str(info.opt_class).partition(".")[0]
        raise UserError(f"the optimizer {name!r} needs {library} and a CUDA device: {error}") from error
    # what timm's own factory binds: the entry's settings, and a momentum of 0.9 wherever there is one
    bound = {**({"momentum": 0.9} if info.has_momentum else {}), **(info.defaults or {})}
    return partial(found, **bound) if bound else found


def _names() -> Iterable[str]:
    import timm.optim

    ours = {*_of_torch(), "LAMB", "LARS"}
    shadowed = {name.lower() for name in ours}  # `adamw` works too, but a list that says AdamW need not say it again
    return {*_of_torch(), *(name for name in timm.optim.list_optimizers() if name not in shadowed)} - set(_UNUSABLE)


OPTIMIZERS = Registry(
    "optimizer",
    {"LAMB": "up.optim.lamb:LAMB", "LARS": "timm.optim:Lars"},
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
    """The optimizer ``type`` of ``table`` over the trainable parameters of ``model``, in few groups.

    ``kwargs`` are the optimizer's own. ``pconfig`` and ``special_param_group`` are those of the YAML (docs/config.md).
    The rates of the groups stand in ``group["lr_scale"]``, relative to ``lr``; ``up.optim.set_lr`` keeps them so.
    Raises ``UserError`` for unknown names and for settings that the optimizer refuses.
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
    try:
        made: Optimizer = make(groups, **kwargs)
    except (ValueError, TypeError) as error:
        raise UserError(f"{type}: {error}") from error
    return made


def lr_of(type: str, kwargs: Kwargs, table: Registry = OPTIMIZERS) -> float:
    """The learning rate that the ``kwargs`` of an optimizer give, or its own default.

    Raises ``UserError`` where there is neither: an optimizer that chooses its own rate follows no schedule.
    """
    lr = {**_settings_of(table.get(type)), **kwargs}.get("lr")
    if lr is None:
        raise UserError(f"is missing ({type} would choose its own, which no schedule can follow)", key="lr", fix="Set lr.")
    if lr < 0:
        raise UserError(got=lr, expected="0 or more", key="lr")
    return float(lr)


def set_lr(optimizer: Optimizer, lr: float) -> float:
    """Give every group its share of ``lr`` (``lr_scale`` times it) and return ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def _settings_of(make: Callable[..., Optimizer]) -> Record:
    """Name -> default of what an optimizer can be told, the parameters themselves aside."""
    return {name: None if each.required else each.default for name, each in signature_of(make).parameters.items()}
