"""Result files: cells, ratios, machine, versions and settings as JSON, without names of hosts or folders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from up import __version__
from up.bench.advice import advice
from up.bench.cells import Row, Settings
from up.bench.machine import description, is_busy, versions
from up.bench.statistics import Outcome, Spread, spread
from up.bench.table import verdict
from up.errors import UserError
from up.processors import available_processors
from up.types import Json, Record

FORMAT = 1


def as_record(outcomes: Sequence[Outcome], settings: Settings, *, rounds: int, gpu: str | None) -> Record:
    """Return everything that a result file holds."""
    others = [load for outcome in outcomes for load in outcome.others]
    machine = {**description(), **({"gpu": gpu} if gpu else {})}
    chosen = {"seconds": settings.seconds, "threads": settings.threads, "clock": settings.clock, "rounds": rounds}
    return {
        "format": FORMAT,
        "date": date.today().isoformat(),
        "up": __version__,
        "machine": machine,
        "versions": versions(),
        "settings": {**chosen, "device": settings.device, "quick": settings.quick},
        "others": {"median": _rounded(spread(others)), "busy_cells": sum(map(is_busy, others)), "cells": len(others)},
        "rows": [_row(outcome) for outcome in outcomes],
        "advice": advice(outcomes, available_processors()),
    }


def _row(outcome: Outcome) -> Record:
    return {
        "name": outcome.row.name,
        "title": outcome.row.title,
        "unit": outcome.row.unit,
        "device": outcome.row.device,
        "cells": {cell.name: _cell(outcome, cell.name) for cell in outcome.row.cells},
        "ratios": {peer: _spread(outcome.ratio(peer)) for peer in outcome.peers},
        "targets": [verdict(outcome, target) for target in outcome.row.targets],
    }


def _cell(outcome: Outcome, name: str) -> Record:
    values = [value if math.isfinite(value) else None for value in outcome.values.get(name, ())]
    extras = {key: outcome.extra(name, key) for each in outcome.extras.get(name, ()) for key in each}
    problem = outcome.problems.get(name)
    return {"values": values, **({"extra": extras} if extras else {}), **({"problem": problem} if problem else {})}


def outcome_of(record: Mapping[str, Json], row: Row) -> Outcome:
    """Restore the values of a row from a result file, as the outcome of ``row`` of this version."""
    made = Outcome(row)
    for name, cell in record["cells"].items():
        made.values[name] = [math.nan if value is None else value for value in cell["values"]]
        made.extras[name] = [cell.get("extra", {})]
        if "problem" in cell:
            made.problems[name] = cell["problem"]
    return made


def read_results(path: Path) -> Record:
    """Read a result file. Raises ``UserError`` for another file."""
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError("a result file", got=found["format"], expected=f"format {FORMAT}", file=path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not a result file of `up bench` ({error})", file=path) from error
    return found


def _spread(found: Spread | None) -> Record | None:
    return None if found is None else {name: round(value, 4) for name, value in found._asdict().items()}


def _rounded(found: Spread | None) -> float:
    return 0.0 if found is None else round(found.median, 3)
