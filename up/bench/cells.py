"""Rows of the benchmark: which cells it measures side by side, and what is expected of their ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

OURS = "ours"


@dataclass(frozen=True)
class Settings:
    """Settings that every cell gets."""

    folder: Path
    """Folder of generated images, shared by all cells."""
    seconds: float = 3.0
    """Seconds that a cell measures after its warm-up."""
    threads: int = 1
    """Threads of torch, and CPUs that the process of a cell is pinned to."""
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Literal["wall", "cpu"] = "wall"
    """``cpu`` counts the seconds of this process on a CPU, for a machine that is shared."""
    quick: bool = False
    """Whether sizes are tiny, to check that the cells run: their numbers mean nothing."""

    def size(self, whole: int, tiny: int) -> int:
        """Return ``whole``, or ``tiny`` for a quick run."""
        return tiny if self.quick else whole


class Reading(NamedTuple):
    """The result of a cell in one process: ``value`` in the unit of its row, and further numbers for the advice."""

    value: float
    extra: Mapping[str, float] = {}


class BenchCell(NamedTuple):
    """A measurement in a process of its own: ``function`` (``module:name``) is called with ``Settings`` and ``kwargs``.

    ``needs`` are the libraries that it imports beyond those that every installation has. ``is_peer``: it measures something else
    than this package, in an environment without the variables that this package sets.
    """

    name: str
    function: str
    kwargs: Mapping[str, object] = {}
    needs: Sequence[str] = ()
    is_peer: bool = False


class Target(NamedTuple):
    """A limit of a row's median: of ours by ``against``, of ours minus ``against``, or of ours alone."""

    limit: float
    sense: Literal["at least", "at most"]
    against: str = ""
    of: Literal["ratio", "difference"] = "ratio"

    def is_met(self, number: float) -> bool:
        """Check the median of the ratios, of the differences or of ours."""
        return number >= self.limit if self.sense == "at least" else number <= self.limit


@dataclass(frozen=True)
class Row:
    """Cells that are compared with each other, ours first. ``bound`` says for the report what limits ours."""

    name: str
    title: str
    unit: str
    cells: Sequence[BenchCell]
    targets: Sequence[Target] = ()
    bound: str = ""
    prepare: Sequence[BenchCell] = field(default=())
    """Run once before all cells, and not measured."""
    threads: int | None = None
    """Threads of this row whatever the settings say."""
    device: Literal["cpu", "cuda"] | None = None
    """The only device that the row is measured on."""

    def against(self, peers: Sequence[str]) -> Row:
        """Return the row with ours and only the cells of ``peers``; all of them if no name is given."""
        kept = [cell for cell in self.cells if cell.name == OURS or not peers or cell.name in peers]
        names = {"", *(cell.name for cell in kept)}
        return Row(
            self.name,
            self.title,
            self.unit,
            kept,
            [target for target in self.targets if target.against in names],
            self.bound,
            self.prepare,
            self.threads,
            self.device,
        )
