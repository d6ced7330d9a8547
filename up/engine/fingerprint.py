"""What may differ between the run that saved a checkpoint and the one that goes on from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from up.errors import UserError
from up.text import count, some_of

# Under these the saved state would mean something else: other tensors, other groups, or other images in the steps to come.
FIXED = (
    "net",
    "teacher",
    "mimic",
    "runtime.task_names",
    "runtime.runner",
    "runtime.random_seed",
    "runtime.special_bn_init",
    "trainer.optimizer.type",
    "trainer.optimizer.pconfig",
    "trainer.optimizer.special_param_group",
    "ema.enable",
    "ema.ema_type",
    "dataset.train.batch_sampler.kwargs.sampler",
    "dataset.train.batch_sampler.kwargs.drop_last",
    "dataset.train.dataloader.kwargs.drop_last",
    "dataset.train.dataloader.kwargs.shuffle",
    "dataset.train.dataset.kwargs.fraction",
    "dataset.train.dataset.kwargs.label_mapping",
)


# Where teachers and what they said are kept; that it is the same teachers, the runner sees by their weights.
HARMLESS = (
    r"mimic\.(mimic_job\w*\.)?teacher\w*\.teacher_weight",
    r"teacher\w*\.0\.kwargs\.file",
    r"mimic\.preflight",
    r"mimic\.cache(\..*)?",
)


_OF_A_RESUME = ("saver.auto_resume", "saver.accept_data_change")


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of the run that wrote it, and what must not change under a resume."""

    config: str  # the effective YAML
    data_sha256: str
    seed: int
    global_batch_size: int
    class_names: list[str] | None
    accept_data_change: bool = False


class Change(NamedTuple):
    """One value of the configuration, then and now; None where there is none."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.then!r} -> {self.now!r}"

    @property
    def is_worth_telling(self) -> bool:
        """Not of a switch of the resume itself, or of one that was unknown then and is off now."""
        return self.key not in _OF_A_RESUME and not (self.then is None and self.now is False)

    @property
    def is_safe(self) -> bool:
        """Whether a run can go on under the new value."""
        if any(re.fullmatch(pattern, self.key) for pattern in HARMLESS):
            return True
        first = self.key.partition(".")[0]
        return not (first.startswith("teacher") or any(self.key == key or self.key.startswith(f"{key}.") for key in FIXED))


def changes(then: str, now: str) -> list[Change]:
    """The values that differ between two configurations in effective YAML, by dotted key."""
    if then == now:
        return []
    old, new = dict(_leaves(yaml.safe_load(then))), dict(_leaves(yaml.safe_load(now)))
    keys = [*old, *(key for key in new if key not in old)]
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def require_same_run(path: Path, state: Mapping[str, Any], facts: Facts) -> list[str]:
    """How the configuration differs from that of the checkpoint ``state``, in lines; raises ``UserError`` where it must not."""
    missing = [name for name in ("config", "data_sha256", "seed", "global_batch_size") if name not in state]
    if missing:
        raise UserError(f"{path}: does not say {some_of(missing)} of its run. Start from its weights with saver.pretrain_model.")
    found = changes(state["config"], facts.config)
    unsafe = [change for change in found if not change.is_safe]
    if unsafe:
        raise UserError(
            f"{path}: was made with another configuration: {some_of(unsafe, 5)}. A run cannot resume under "
            f"{'this change' if len(unsafe) == 1 else count(len(unsafe), 'change')}: take it back, or train with the run's own "
            f"{path.parent / 'config.yaml'}, or start anew in another folder with "
            f"saver.save_dir={path.parent}-2 (and saver.pretrain_model={path} to start from its weights)."
        )
    if state["data_sha256"] != facts.data_sha256 and not facts.accept_data_change:
        raise UserError(
            f"{path}: the training data have changed since this checkpoint (sha256 {state['data_sha256'][:12]}… then, "
            f"{facts.data_sha256[:12]}… now). Restore them, resume with --accept-data-change (saver.accept_data_change: true), or "
            f"start anew with saver.save_dir={path.parent}-2."
        )
    for key, now in (("seed", facts.seed), ("global_batch_size", facts.global_batch_size)):
        if state[key] != now:
            raise UserError(
                f"{path}: was made with {key} {state[key]}, this run has {now}; the images would come in another order. "
                "Restore it (batch_size x ranks x accumulate is the global batch size), or start from the weights alone with "
                "saver.pretrain_model."
            )
    return [f"changed since {path}: {change}" for change in found if change.is_worth_telling]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that holds no more mapping; lists count from 0."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    else:
        yield path, value
