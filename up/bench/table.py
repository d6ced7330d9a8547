"""Results as a table: medians with their spread, ratios, and whether targets are met."""

from __future__ import annotations

from collections.abc import Sequence

from up.bench.cells import OURS, Target
from up.bench.statistics import Outcome, Spread
from up.text import shortened

COLUMNS = ("what", "cell", "median", "least to most", "ours / it", "target")


def cells_of(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return the lines of the table: one a cell, ours first in each row."""
    return [line for outcome in outcomes for line in _lines(outcome)]


def _lines(outcome: Outcome) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for cell in outcome.row.cells:
        first = f"{outcome.row.name}: {outcome.row.title}" if cell.name == outcome.row.cells[0].name else ""
        problem, found = outcome.problems.get(cell.name), outcome.of(cell.name)
        targets = [target for target in outcome.row.targets if target.against == ("" if cell.name == OURS else cell.name)]
        verdicts = "; ".join(verdict(outcome, target) for target in targets)
        if found is None:
            lines.append((first, cell.name, "-", shortened(problem or "not measured", 120), "", verdicts))
            continue
        ratio = None if cell.name == OURS else outcome.ratio(cell.name)
        lines.append((first, cell.name, with_unit(found.median, outcome.row.unit), range_of(found), _ratio(ratio), verdicts))
    return lines


def verdict(outcome: Outcome, target: Target) -> str:
    """Say what a target asks, and whether it is met."""
    found = outcome.compared(target)
    if found is None:
        return f"{limit_of(outcome, target)}: not measured"
    reached = f"{found.median:.2f}" if target.of == "ratio" and target.against else with_unit(found.median, outcome.row.unit)
    return f"{limit_of(outcome, target)}: {'met' if target.is_met(found.median) else f'missed, {reached}'}"


def limit_of(outcome: Outcome, target: Target) -> str:
    """Write the limit of a target: ``>= 2.00 x``, ``<= +0.4 ms``, ``<= 0.8 s``."""
    sign = ">=" if target.sense == "at least" else "<="
    if not target.against:
        return f"{sign} {target.limit:g} {outcome.row.unit}"
    return f"{sign} {target.limit:.2f} x" if target.of == "ratio" else f"{sign} {target.limit:+g} {outcome.row.unit}"


def with_unit(value: float, unit: str) -> str:
    """Write a value with three significant digits or more: ``1,234 images/s``, ``0.412 ms``."""
    return f"{number(value)} {unit}"


def number(value: float) -> str:
    """Write a number with three significant digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def range_of(found: Spread) -> str:
    """Write the least and the largest value of a spread."""
    return f"{number(found.least)} to {number(found.most)}"


def _ratio(found: Spread | None) -> str:
    return "" if found is None else f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"
