"""The page docs/performance.md, written from the result files in ``benchmarks/``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from up.bench.cells import OURS, Row
from up.bench.kinds import KINDS, rows_of
from up.bench.results import outcome_of
from up.bench.statistics import Outcome, Spread
from up.bench.table import limit_of, number, range_of, with_unit
from up.text import count
from up.types import Json, Record

_TITLES = {
    "loader": "Reading images",
    "step": "The step",
    "start": "The start",
    "memory": "Memory",
    "optimizer": "Optimizers",
    "predict": "Predictions",
    "serve": "Serving",
    "run": "A whole run",
}


def page(head: str, results: Sequence[Record]) -> str:
    """Return the page: ``head``, then a chapter for each machine with the newest result of each row."""
    lines = [head.rstrip(), ""]
    for machine in by_machine(results):
        lines += chapter(machine)
    return "\n".join(lines).rstrip() + "\n"


def by_machine(results: Sequence[Record]) -> list[list[Record]]:
    """Group result files by machine and versions, the newest file first; quick ones are left out."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(results, key=lambda record: str(record["date"]), reverse=True):
        if not record["settings"]["quick"]:
            groups.setdefault(json.dumps([record["machine"], record["versions"]], sort_keys=True), []).append(record)
    return list(groups.values())


def chapter(records: Sequence[Record]) -> Iterator[str]:
    """Write the tables of one machine, kind by kind."""
    first = records[0]
    yield from (f"## {title_of(first['machine'])}", "", *facts_of(records), "")
    for kind in KINDS:
        found = list(rows_with_results(rows_of(kind), records))
        if found:
            yield from (
                f"### {_TITLES[kind]}",
                "",
                "| what | next to | median | least to most | ours / it | target |",
                "|---|---|---|---|---|---|",
            )
            for outcome in found:
                yield from table_lines(outcome)
            yield ""
            yield from ("What bounds them:", "")
            yield from (f"- *{outcome.row.title}.* {outcome.row.bound}" for outcome in found if outcome.row.bound)
            yield ""


def rows_with_results(rows: Sequence[Row], records: Sequence[Record]) -> Iterator[Outcome]:
    """Yield the newest result of each row that has one."""
    for row in rows:
        held = (entry for record in records for entry in record["rows"] if entry["name"] == row.name)
        entry: Mapping[str, Json] | None = next(held, None)
        if entry is not None:
            yield outcome_of(entry, row)


def table_lines(outcome: Outcome) -> Iterator[str]:
    """Write a line for each cell, ours first."""
    for cell in outcome.row.cells:
        found = outcome.of(cell.name)
        is_ours = cell.name == OURS
        what, beside = (outcome.row.title, "**ours**") if is_ours else ("", cell.name)
        targets = [target for target in outcome.row.targets if target.against == ("" if is_ours else cell.name)]
        asked = "; ".join(f"{limit_of(outcome, target)} {_mark(outcome, target)}" for target in targets)
        if found is None and cell.name not in outcome.problems:  # left out by --against
            continue
        if found is None:
            yield f"| {what} | {beside} | {outcome.problems.get(cell.name, 'not measured')} | | | {asked} |"
            continue
        ratio = None if is_ours else outcome.ratio(cell.name)
        yield f"| {what} | {beside} | {with_unit(found.median, outcome.row.unit)} | {range_of(found)} | {_ratio(ratio)} | {asked} |"


def _mark(outcome: Outcome, target: Json) -> str:
    found = outcome.compared(target)
    if found is None:
        return "not measured"
    return "met" if target.is_met(found.median) else "**missed**"


def _ratio(found: Spread | None) -> str:
    return "" if found is None else f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"


def title_of(machine: Mapping[str, Json]) -> str:
    """Name a machine by its GPU, or by its CPUs."""
    cpus = f"{machine['cpus']} CPUs"
    return f"{machine['gpu']}, {cpus}" if "gpu" in machine else f"{cpus}, {machine['cpu']}"


def facts_of(records: Sequence[Record]) -> Iterator[str]:
    """Write hardware and versions, and the settings of each result file."""
    machine = records[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in records[0]["versions"].items())
    fast = f" with {', '.join(machine['instructions'])}" if machine["instructions"] else ""
    yield f"{machine['cpu']}{fast}, {machine['memory_gb']} GB, {machine['system']}; {versions}."
    yield ""
    for record in records:
        names = ", ".join(str(row["name"]) for row in record["rows"])
        settings, others = record["settings"], record["others"]
        clock = "CPU time" if settings["clock"] == "cpu" else "wall clock"
        calm = "no cell disturbed by other processes"
        busy = f"{others['busy_cells']} of {others['cells']} cells disturbed by other processes" if others["busy_cells"] else calm
        what = f"{count(settings['rounds'], 'round')} of {number(settings['seconds'])} s a cell, {clock}"
        yield f"- {names}: {record['date']}, {what}, {count(settings['threads'], 'thread')}; {busy}."
