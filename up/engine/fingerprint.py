"""Run fingerprint: compare the run that saved a checkpoint with the run that resumes from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from up.config.nodes import read_plain
from up.config.parts import Tables
from up.config.walk import leaves
from up.errors import UserError
from up.run_files import CONFIG
from up.schema.finetune import FinetuneSection
from up.schema.sections import Config
from up.text import count, some_of
from up.types import StateDict


@dataclass(frozen=True)
class RunFingerprint:
    """Config, data hash, seed and class names of a run, compared on resume; config and data hash also between ranks."""

    config: str  # the effective YAML
    data_sha256: str
    seed: int
    global_batch_size: int
    class_names: list[str] | None
    accept_data_change: bool = False


class Change(NamedTuple):
    """A value of the configuration, then and now; None where it is absent.

    ``is_safe``: a run can resume with the new value. ``is_reported``: the change is logged.
    """

    key: str
    then: object
    now: object
    is_safe: bool
    is_reported: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.then!r} -> {self.now!r}"


def changes(then: str, now: str, tables: Tables) -> list[Change]:
    """List the values that differ between two configurations in effective YAML, by dotted key.

    A value left out counts as its default, in sections and in the kwargs of parts.
    """
    if then == now:
        return []
    old, new = (leaves(Config, _completed(read_plain(text)), tables) for text in (then, now))
    found = []
    for key in dict.fromkeys([*old, *new]):
        earlier, later = old.get(key), new.get(key)
        value, current = (None if leaf is None else leaf.value for leaf in (earlier, later))
        known = [leaf for leaf in (earlier, later) if leaf is not None]
        if value != current:
            is_new_switch = value is None and current is False  # unknown then, off now
            reported = all(leaf.reported for leaf in known) and not is_new_switch
            found.append(Change(key, value, current, not any(leaf.fixed for leaf in known), reported))
    return found


def _completed(plain: object) -> object:
    """Fill in the defaults of sections; leave a configuration that only another version can read unchanged.

    Without a section ``finetune`` a run trains as with an empty one.
    """
    try:
        config = Config.model_validate(plain)
    except ValidationError:
        return plain
    return config.model_copy(update={"finetune": config.finetune or FinetuneSection()}).model_dump()


def require_same_run(path: Path, state: StateDict, fingerprint: RunFingerprint, tables: Tables) -> list[str]:
    """List how the configuration differs from that of the checkpoint ``state``. Raises ``UserError`` for what must not differ."""
    missing = [name for name in ("config", "data_sha256", "seed", "global_batch_size") if name not in state]
    if missing:
        fix = "Start from its weights with saver.pretrain_model."
        raise UserError(f"the checkpoint does not record {some_of(missing)} of its run", file=path, fix=fix)
    found = changes(state["config"], fingerprint.config, tables)
    unsafe = [change for change in found if not change.is_safe]
    new_run = f"start a new run with saver.save_dir={path.parent}-2"
    if unsafe:
        raise UserError(
            f"the checkpoint was made with a different configuration: {some_of(unsafe, 5)}. A run cannot resume under "
            f"{'this change' if len(unsafe) == 1 else count(len(unsafe), 'change')}",
            file=path,
            fix=f"Revert it, train with the run's own {path.parent / CONFIG}, or {new_run} "
            f"(and saver.pretrain_model={path} to start from its weights).",
        )
    if state["data_sha256"] != fingerprint.data_sha256:
        _require_accepted_data(path, state, fingerprint, new_run)
    for name, now in (("seed", fingerprint.seed), ("global_batch_size", fingerprint.global_batch_size)):
        if state[name] != now:
            raise UserError(
                f"the checkpoint was made with another {name}, and images would come in another order",
                got=now,
                expected=f"{state[name]}",
                file=path,
                fix="Restore it (batch_size x ranks x accumulate is the global batch size), or start from the weights alone with "
                "saver.pretrain_model.",
            )
    return [f"changed since {path}: {change}" for change in found if change.is_reported]


def _require_accepted_data(path: Path, state: StateDict, fingerprint: RunFingerprint, new_run: str) -> None:
    """Raise ``UserError`` for changed data, unless the change is accepted and the classes have kept their order."""
    if not fingerprint.accept_data_change:
        raise UserError(
            f"the training data have changed since this checkpoint (sha256 {state['data_sha256'][:12]}… then, "
            f"{fingerprint.data_sha256[:12]}… now)",
            file=path,
            fix=f"Restore them, resume with --accept-data-change (saver.accept_data_change: true), or {new_run}.",
        )
    then, now = (_of_heads(names) for names in (state.get("class_names"), fingerprint.class_names))
    for before, after in zip(then, now, strict=False):
        if before != after and sorted(before) == sorted(after):
            label = next(label for label, name in enumerate(before) if name != after[label])
            what = f"the classes are in a different order from this checkpoint: label {label} was {before[label]}"
            raise UserError(f"{what} and is {after[label]}", file=path, fix=f"Restore their order, or {new_run}.")


def _of_heads(names: Sequence[str] | Sequence[Sequence[str]] | None) -> list[list[str]]:
    """Return the class names of each head; an empty list if they are unknown."""
    if not names:
        return []
    return [[str(name) for name in names]] if isinstance(names[0], str) else [list(of_head) for of_head in names]
