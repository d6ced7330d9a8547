"""Which checkpoints of a run stay, and which are deleted when newer ones are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from up.engine.every import AnyOf
from up.text import some_of

PREDECESSORS = 1  # of the newest checkpoint, which may turn out to be damaged


@dataclass(frozen=True)
class Keeping:
    """The newest ``last`` checkpoints stay, and those of the steps of ``for_good``; ``ckpt_best.pth`` is a file of its own."""

    last: int
    for_good: AnyOf
    why: str = ""
    """The setting that lets the others go, and the one that keeps them."""

    def outdated(self, steps: Sequence[int]) -> Iterator[int]:
        """Of the steps that have a checkpoint, rising, those whose checkpoint goes."""
        return (step for step in steps[: -self.last] if not self.for_good.is_due(step))

    def lines(self, save: AnyOf, total: int, unit: int, name: str) -> Iterator[str]:
        """Which checkpoints there will be, and which of them go, for the start of the log. A ``name`` has ``unit`` steps."""
        due = list(save.steps(total))
        gone = list(self.outdated(due))
        saved = f"checkpoints: after {_ranges(due, unit, name)}"
        if not gone:
            yield f"{saved}; all are kept, and the best as ckpt_best.pth"
            return
        older = [step for step in due[: -self.last] if step not in set(gone)]
        kept = f"the newest {self.last}{f' and {_ranges(older, unit, name)}' if older else ''}"
        yield f"{saved}; kept are {kept}, and the best as ckpt_best.pth"
        yield f"  deleted once there are {self.last} newer ones: {_ranges(gone, unit, name)} ({self.why})"


def _ranges(steps: Sequence[int], unit: int, name: str) -> str:
    """``epochs 1-4, 6-9, 11``, or ``steps 5, 10, … 100`` of what comes at even distances."""
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
