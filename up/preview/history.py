"""Logged losses of a run and those that stand out, without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import NamedTuple

from up.errors import UserError
from up.json_text import records_in, with_nan
from up.run_files import METRICS, STATUS
from up.types import Record

_AROUND = 10  # records on either side that a loss is compared with


class Spike(NamedTuple):
    """A logged loss: its step (from 1), and how many times the median of those around it it is."""

    step: int
    epoch: float
    loss: float
    times: float


def records_of(run: Path, phase: str = "train") -> list[Record]:
    """Read the records of a phase from ``metrics.jsonl``, rising by step. Raises ``UserError`` where there is no such file."""
    path = run / METRICS
    try:
        found = [with_nan(record) for _, record in records_in(path)]
    except OSError as error:
        raise UserError(f"{path}: no such file", expected="the folder of a run, with metrics.jsonl and config.yaml") from error
    return sorted((record for record in found if record.get("phase") == phase), key=lambda record: int(record["step"]))


def logged_at(run: Path, step: int) -> tuple[Record | None, int]:
    """Return the record that covers ``step``, and the first step that it is a mean over; None if the run did not log it."""
    before = 0
    for record in records_of(run):
        if record["step"] >= step:
            return record, before + 1
        before = record["step"]
    return None, before + 1


def spikes(run: Path, number: int) -> list[Spike]:
    """List the largest logged losses, those that are not finite first."""
    losses = [
        (int(record["step"]), float(record["epoch"]), float(record["loss"])) for record in records_of(run) if "loss" in record
    ]
    values = [loss for _, _, loss in losses]
    found = []
    for at, (step, epoch, loss) in enumerate(losses):
        near = [value for value in (*values[max(0, at - _AROUND) : at], *values[at + 1 : at + 1 + _AROUND]) if math.isfinite(value)]
        middle = median(near) if near else loss
        found.append(Spike(step, epoch, loss, loss / middle if middle else math.nan))
    return sorted(found, key=lambda spike: (math.isfinite(spike.loss), -spike.loss))[:number]


def stopped(run: Path) -> str | None:
    """Say after which step and why a run failed, whose last step is not among the records; None for other runs."""
    try:
        status = json.loads((run / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(status, dict) or status.get("state") != "failed":
        return None
    return f"the run failed after {status['step']:,} steps: {status['reason']}"
