"""``pconfig`` and ``special_param_group`` as YAML writes them, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from up.errors import UserError
from up.optim.groups import CLASS_RULES, RULES, Discriminative, LayerDecay, Rules
from up.text import did_you_mean, some_of


def read_rules(pconfig: Mapping[str, Any] | None, *, optimizer: str, options: Collection[str]) -> Rules:
    """``pconfig`` -> ``Rules``.

    A rule is written ``{type, kwargs: {weight_decay: 0.0}}`` or shortly ``{weight_decay: 0.0}``; ``type`` names
    nothing. A ``nodecay`` nested in another rule holds for all parameters, as one beside it does. ``options`` are what
    the optimizer takes. Raises ``UserError`` for an unknown rule or option, and for values out of range.
    """
    by_class: dict[str, Mapping[str, Any]] = {}
    nodecay: list[str] = []
    depths: list[LayerDecay | Discriminative] = []
    for name, written in (pconfig or {}).items():
        where = f"pconfig.{name}"
        if name not in RULES:
            raise UserError(f"pconfig: no rule is called {name!r}.{did_you_mean(name, RULES) or f' Known: {some_of(RULES, 20)}.'}")
        if name == "nodecay":
            nodecay += _nodecay(where, written)
            continue
        rule, nested = _flat(where, written)
        nodecay += _nodecay(f"{where}.nodecay", nested)
        if name == "layer_decay":
            depths.append(_layer_decay(where, rule))
        elif name == "discriminative":
            depths.append(_discriminative(where, rule))
        else:
            _add_class_rule(by_class, name, _options(where, rule, optimizer, options))
    if len(depths) > 1:
        raise UserError("pconfig.layer_decay and pconfig.discriminative both set the rates by depth. Remove one.")
    return Rules(by_class, tuple(nodecay), depths[0] if depths else None)


def read_special(groups: Sequence[Mapping[str, Any]] | None, *, optimizer: str, options: Collection[str]) -> list[dict[str, Any]]:
    """``special_param_group`` with its options checked; each entry has a ``key``."""
    checked = []
    for position, group in enumerate(groups or ()):
        where = f"special_param_group[{position}]"
        if not isinstance(group, Mapping) or not isinstance(group.get("key"), str):
            raise UserError(f"{where}: key is missing (a part of the names of the parameters that are meant)")
        rest = {key: value for key, value in group.items() if key != "key" and value is not None}
        checked.append({"key": group["key"], **_options(where, rest, optimizer, options)})
    return checked


def _add_class_rule(by_class: dict[str, Mapping[str, Any]], name: str, rule: Mapping[str, Any]) -> None:
    full = "linear_b" if name == "linear" else name
    assert full in CLASS_RULES, full
    if full in by_class:
        raise UserError("pconfig: 'linear' is another name of 'linear_b'. Remove one.")
    by_class[full] = rule


def _flat(where: str, written: Any) -> tuple[dict[str, Any], Any]:
    """A rule without its ``type`` and ``kwargs`` wrapping, and the ``nodecay`` that was nested in it."""
    kwargs = written.get("kwargs") if isinstance(written, Mapping) else None
    if not isinstance(written, Mapping) or not isinstance(kwargs, Mapping | None):
        raise UserError(f"{where} is {written}, expected {{type, kwargs: {{weight_decay: 0.0}}}}")
    rule = {**written, **(kwargs or {})}
    for wrapping in ("type", "kwargs"):
        rule.pop(wrapping, None)
    return rule, rule.pop("nodecay", None)


def _nodecay(where: str, written: Any) -> list[str]:
    """``{value: [...]}``, a list, or one name."""
    if isinstance(written, Mapping):
        _only(where, written, ("type", "value"))
        written = written.get("value")
    names = [written] if isinstance(written, str) else [] if written is None else written
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{where} is {written}, expected a list of parts of names, or ndim_is1")
    return list(names)


def _layer_decay(where: str, rule: Mapping[str, Any]) -> LayerDecay:
    _only(where, rule, ("value", "base_lr"))
    if "value" not in rule:
        raise UserError(f"{where}: value is missing (the factor from one layer to the one below, say 0.75)")
    value, base_lr = rule["value"], rule.get("base_lr")
    if not _is_number(value) or not 0 < value <= 1:
        raise UserError(f"{where}.value is {value!r}, expected a number above 0 and up to 1")
    if base_lr is not None:
        _not_negative(f"{where}.base_lr", base_lr)
    return LayerDecay(value, base_lr)


def _discriminative(where: str, rule: Mapping[str, Any]) -> Discriminative:
    _only(where, rule, ("blocks", "factor"))
    made = Discriminative(**rule)
    if not isinstance(made.blocks, int) or made.blocks < 1:
        raise UserError(f"{where}.blocks is {made.blocks!r}, expected 1 or more")
    if not _is_number(made.factor) or made.factor < 1:
        raise UserError(f"{where}.factor is {made.factor!r}, expected 1 or more")
    return made


def _options(where: str, rule: Mapping[str, Any], optimizer: str, options: Collection[str]) -> dict[str, Any]:
    for name, value in rule.items():
        if name not in options:
            near = did_you_mean(name, options) or f" It takes {some_of(sorted(options), 20)}."
            raise UserError(f"{where}: {optimizer} takes no {name!r}.{near}")
        if name in ("lr", "weight_decay"):
            _not_negative(f"{where}.{name}", value)
    return dict(rule)


def _only(where: str, mapping: Mapping[str, Any], known: Collection[str]) -> None:
    for name in mapping:
        if name not in known:
            raise UserError(f"{where}: unknown key {name!r}.{did_you_mean(name, known) or f' Known: {some_of(known)}.'}")


def _not_negative(where: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise UserError(f"{where} is {value!r}, expected a number of 0 or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
