"""The timetable of a run: the steps after which it evaluates and saves, and the checkpoints that it keeps.

Steps are counted from 1 here: a run is at step 3 when three steps are done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from up.text import some_of

PREDECESSORS = 1  # of the newest checkpoint, which may turn out to be damaged


@dataclass(frozen=True)
class Every:
    """Due after a step that is a whole number of periods and not before ``start``; always at ``total``."""

    period: int  # steps; 0 = only at the end
    start: int
    total: int
    stop: int | None = None  # the step of an early stop, which is due too

    def is_due(self, step: int) -> bool:
        """Check whether ``step`` is due."""
        return step in (self.total, self.stop) or (self.period > 0 and step >= self.start and step % self.period == 0)


@dataclass(frozen=True)
class AnyOf:
    """Due when any of several schedules is."""

    schedules: Sequence[Every]

    def is_due(self, step: int) -> bool:
        """Check whether ``step`` is due."""
        return any(every.is_due(step) for every in self.schedules)

    def steps(self, total: int) -> Iterator[int]:
        """List all steps up to ``total`` that are due, rising."""
        periods = {total, *(step for every in self.schedules if every.period for step in range(every.period, total, every.period))}
        ends = {every.total for every in self.schedules if every.total < total}
        return (step for step in sorted(periods | ends) if self.is_due(step))


@dataclass(frozen=True)
class Retention:
    """Which old checkpoints are kept: the newest ``last``, the ``best`` by the main metric, and those of the steps of ``for_good``.

    The best is always kept by its own alias. Checkpoints written only because a signal stopped the run do not count as ``last``: a
    resumed run keeps those that an uninterrupted one keeps. Up to ``last`` of them stay until there are newer ones.
    """

    last: int
    for_good: AnyOf
    why: str = ""
    """The setting that deletes the others, and the setting that keeps them."""
    best: int = 0

    def outdated(
        self, steps: Sequence[int], scores: Mapping[int, float] | None = None, stops: Collection[int] = ()
    ) -> Iterator[int]:
        """List those of the rising ``steps`` with a checkpoint whose checkpoint is deleted.

        ``scores`` are main metrics by step; ``stops`` are the steps whose checkpoint was written only because a signal came.
        """
        planned = [step for step in steps if step not in stops]
        kept = {*steps[-self.last :], *planned[-self.last :], *self.top(scores or {})}
        return (step for step in steps if step not in kept and not self.for_good.is_due(step))

    def top(self, scores: Mapping[int, float]) -> list[int]:
        """List the steps of the ``best`` highest scores, the highest first, the earlier of two equal ones first."""
        return sorted(scores, key=lambda step: (-scores[step], step))[: self.best]


@dataclass(frozen=True)
class Timetable:
    """Length of a run in steps, and when it evaluates and saves."""

    steps_per_epoch: int
    total: int
    evaluate: Every
    save: AnyOf
    keep: Retention
    stop: int | None = None
    """The step after which to stop early, as a signal does (``trainer.stop_epoch``)."""
    in_epochs: bool = True
    """Whether the log counts epochs: not where the configuration counts steps."""

    def checkpoint_lines(self) -> Iterator[str]:
        """Report, for the start of the log, the checkpoints of the run and those that will be deleted."""
        whole_epochs = self.in_epochs and self.total % self.steps_per_epoch == 0
        unit = (self.steps_per_epoch, "epoch") if whole_epochs else (1, "step")
        due, last = list(self.save.steps(self.total)), self.keep.last
        gone = list(self.keep.outdated(due))
        saved = f"checkpoints: after {_ranges(due, *unit)}"
        best = "the best as ckpt_best.pth"
        if self.keep.best:
            best = f"the {self.keep.best} best by the main metric (trainer.keep_best), {best}"
        if not gone:
            yield f"{saved}; all are kept, and {best}"
            return
        older = [step for step in due[:-last] if step not in set(gone)]
        kept = f"the newest {last}{f' and {_ranges(older, *unit)}' if older else ''}"
        yield f"{saved}; kept are {kept}, and {best}"
        yield f"  deleted once there are {last} newer ones: {_ranges(gone, *unit)} ({self.keep.why})"


def _ranges(steps: Sequence[int], unit: int, name: str) -> str:
    """Shorten to ``epochs 1-4, 6-9, 11``, or ``steps 5, 10, … 100`` for even distances."""
    numbers = [step / unit for step in steps]
    noun = name if len(numbers) == 1 else f"{name}s"
    distances = {round(after - before, 6) for before, after in zip(numbers, numbers[1:], strict=False)}
    if len(numbers) > 3 and len(distances) == 1 and distances != {1.0}:
        return f"{noun} {numbers[0]:.10g}, {numbers[1]:.10g}, … {numbers[-1]:.10g}"
    spans: list[list[float]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return f"{noun} {some_of(('-'.join(f'{end:.10g}' for end in span) for span in spans), 6)}"
