"""The length of a training as overrides: epochs, and the schedule scaled to them."""

from __future__ import annotations

from collections.abc import Iterator

from up.config.tree import MappingNode, is_null
from up.schema.sections import Config
from up.schema.trainer import SchedulePart
from up.types import Record

_STRETCHED = ("T_max", "milestones", "step_size", "warm_epoch", "offset_epoch", "warmup_iter")  # kwargs in epochs or steps


def overrides_of_length(config: Config, tree: MappingNode, epochs: int) -> Iterator[tuple[str, object]]:
    """Yield by dotted path the new length, and the schedule scaled to it, where it counts epochs or steps."""
    trainer = config.trainer
    yield "trainer.max_epoch", epochs
    if trainer.max_iter is not None:
        yield "trainer.max_iter", None
        yield "runtime.iter_base", config.runtime.iter_base  # frequencies keep their unit, epochs or steps
    part = trainer.lr_scheduler
    if part is None or (trainer.max_iter is None and trainer.max_epoch in (None, epochs)):
        return
    own, kwargs = _stretched(config, part, epochs)
    if is_null(tree.block("trainer").get("lr_scheduler")):  # at another place in the file, so it is overridden as a whole
        yield "trainer.lr_scheduler", {**part.model_dump(), **own, "kwargs": {**part.kwargs, **kwargs}}
        return
    yield from ((f"trainer.lr_scheduler.{key}", value) for key, value in own.items())
    yield from ((f"trainer.lr_scheduler.kwargs.{key}", value) for key, value in kwargs.items())


def _stretched(config: Config, part: SchedulePart, epochs: int) -> tuple[dict[str, float], Record]:
    """The settings of a schedule that count epochs or steps, scaled to the new length: its own, and those of its kwargs."""
    trainer = config.trainer
    own: dict[str, float] = {}
    kwargs: Record = {}
    if trainer.max_iter is not None and part.warmup_iter:  # steps per epoch are unknown here: keep the share of the run
        own = {"warmup_iter": 0, "warmup_epochs": epochs * part.warmup_iter / trainer.max_iter}
        if part.kwargs.get("warmup_iter") == part.warmup_iter:
            kwargs["warmup_iter"] = None
    if config.schedule_counts_steps:
        return own, {**kwargs, "T_max": epochs}
    before = trainer.max_epoch if trainer.max_iter is None else part.kwargs.get("T_max")
    if not before:
        return own, kwargs
    if trainer.max_iter is None:
        own |= {"warmup_iter": round(part.warmup_iter * epochs / before)} if part.warmup_iter else {}
        own |= {"warmup_epochs": part.warmup_epochs * epochs / before} if part.warmup_epochs else {}
    for key in _STRETCHED:
        value = part.kwargs.get(key)
        if isinstance(value, list):
            kwargs[key] = [whole(each * epochs / before) for each in value]
        elif isinstance(value, int | float) and value and key not in kwargs:
            kwargs[key] = whole(value * epochs / before)
    return own, kwargs


def whole(number: float) -> int:
    """Round to a whole number of at least 1."""
    return max(1, round(number))
