"""Trackers: libraries that keep the scalars of many runs. No torch is imported here: a tracker works in a process of its own."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

from up.config.contract import Contract
from up.errors import UserError
from up.registry import Registry
from up.types import Kwargs

End = Literal["done", "preempted", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it: ``name`` and absolute ``folder``, the effective ``config``, and the ``run_id`` to continue."""

    name: str
    folder: str
    config: Kwargs
    run_id: str | None = None


class Tracker(ABC):
    """Base of trackers. The constructor keeps plain settings only: the object is pickled and works in another process.

    ``library`` is the module that it needs, ``pip`` the arguments of pip that install it. What a method raises is a warning in
    the log of the run, and the row is lost to the tracker.
    """

    library: ClassVar[str] = ""
    pip: ClassVar[str] = "-e '.[trackers]'"

    def check(self) -> None:
        """Raise ``UserError`` if the library is not installed."""
        if self.library and find_spec(self.library) is None:
            what = f"{self.library} is not installed in the environment of {sys.executable}"
            raise UserError(what, fix=f"Install it: pip install {self.pip}")

    @abstractmethod
    def start(self, run: TrackedRun) -> str:
        """Open a run, or continue ``run.run_id``; return its id, by which a resumed run continues it."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row: values such as ``train/loss`` and ``eval/top1``. Steps rise from call to call, across a resume too."""

    def best(self, values: Mapping[str, float]) -> None:  # noqa: B027 - a tracker may leave it out
        """Note the best evaluation so far: ``best/top1`` and ``best/step``."""

    @abstractmethod
    def finish(self, state: End) -> None:
        """End the run; called once, also for a run that was killed (``failed``)."""


def _bases() -> tuple[type, ...]:
    from up.tracking.tensorboard import TensorBoard

    return (Tracker, TensorBoard)


TRACKERS = Registry(
    "tracker",
    {
        "clearml": "up.tracking.trackers.clearml:ClearML",
        "mlflow": "up.tracking.trackers.mlflow:MLflow",
        "tensorboard": "up.tracking.tensorboard:TensorBoard",
        "trackio": "up.tracking.trackers.trackio:Trackio",
        "wandb": "up.tracking.trackers.wandb:WandB",
    },
    contract=Contract("docs/add_a_part.md", base=_bases),
)


def flat(values: Kwargs, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested blocks and lists with dotted keys."""
    for key, value in values.items():
        inner: object = (
            dict(enumerate(value)) if isinstance(value, list) and any(isinstance(each, dict) for each in value) else value
        )
        if isinstance(inner, Mapping) and inner:
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
