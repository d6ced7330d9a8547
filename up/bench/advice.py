"""Advice on a recipe, computed from its measured numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from up.bench.cells import OURS
from up.bench.own import GRAPHS, RUN, STEP, TWICE, WORKER
from up.bench.statistics import Outcome
from up.text import count

WORTH = 1.05  # a ratio from which a change is worth a line
_WAITS = 0.05  # share of a step from which waiting for data is worth a line
_HOW = {
    "bf16": "set runtime.amp: bf16",
    "fp16": "set runtime.amp: fp16",
    "fp32": "leave runtime.amp out",
    "channels last": "set runtime.channels_last: true",
    "channels first": "set runtime.channels_last: false",
    "compiled": "set runtime.compile: true",
    GRAPHS: "set runtime.compile: {mode: reduce-overhead}",
    TWICE: "try a batch of twice the size, if accuracy allows; warm-up and lr may need a change",
}


def advice(outcomes: Sequence[Outcome], cpus: int) -> list[str]:
    """Return lines of advice for a recipe that was measured on ``cpus`` CPUs; empty for other rows."""
    by_name = {outcome.row.name: outcome for outcome in outcomes}
    lines = []
    run, worker, step = (by_name.get(name) for name in (RUN, WORKER, STEP))
    if run is not None:
        lines += _on_data(run, worker, cpus)
    if step is not None:
        rates = {cell: found.median for cell in step.values if (found := step.of(cell)) is not None}
        lines += on_settings(rates)
    return lines


def _on_data(run: Outcome, worker: Outcome | None, cpus: int) -> list[str]:
    wait, rate, number = run.extra(OURS, "wait"), run.of(OURS), run.extra(OURS, "workers")
    one = None if worker is None else worker.of(OURS)
    if wait is None or rate is None or number is None:
        return []
    return [on_waiting(wait, rate.median, None if one is None else one.median, workers=round(number), cpus=cpus)]


def on_waiting(wait: float, rate: float, one_worker: float | None, *, workers: int, cpus: int) -> str:
    """Say what share of a step waits for data, and how many workers would keep up.

    ``rate`` are the images a second of training, ``one_worker`` those that one worker makes.
    """
    text = f"{100 * wait:.0f} % of the step waits for data"
    if wait < _WAITS:
        keeping = "no worker is needed" if not workers else f"{count(workers, 'worker')} {'keeps' if workers == 1 else 'keep'} up"
        return f"{text}: {keeping}"
    if one_worker is None:
        return f"{text}; `up bench loader` with this recipe says how many workers would keep up"
    needed = max(1, math.ceil(rate / (1 - min(wait, 0.99)) / one_worker))
    if needed <= max(workers, cpus):
        return f"{text}: {count(needed, 'worker')} would keep up (num_workers is {workers}, one makes {one_worker:,.0f} images/s)"
    return (
        f"{text}: {count(needed, 'worker')} would keep up, more than the {cpus} CPUs. Make images cheaper: `up data cache`, "
        "smaller files, or fewer random transforms"
    )


def on_settings(rates: Mapping[str, float]) -> list[str]:
    """Compare the images a second of a step as written (``ours``) with those of other settings."""
    written = rates.get(OURS)
    if written is None:
        return []
    lines = [
        f"{name} is {rate / written:.2f} x the recipe here: {_HOW[name]}"
        for name, rate in rates.items()
        if name in _HOW and rate >= WORTH * written
    ]
    halves = [name for name in ("fp16", "bf16") if name in rates]
    if len(halves) == 2 and max(rates["fp16"], rates["bf16"]) >= WORTH * min(rates["fp16"], rates["bf16"]):
        fast, slow = sorted(halves, key=lambda name: rates[name], reverse=True)
        lines.append(f"{fast} is {rates[fast] / rates[slow]:.2f} x {slow} here")
    return lines or ["no other setting is faster by 5 % here"]
