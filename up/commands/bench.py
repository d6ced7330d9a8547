"""``up bench``: measure this program next to others, or a recipe of the user's own, and give advice."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from up.bench.advice import advice
from up.bench.cells import Row, Settings
from up.bench.images import cache_folder
from up.bench.kinds import ALL, KINDS, chosen, rows_of
from up.bench.machine import Watch, is_busy, require_idle
from up.bench.own import rows_for
from up.bench.runner import measure
from up.bench.statistics import Outcome
from up.bench.table import COLUMNS, cells_of
from up.commands.arguments import amount, at_most, positive, threads
from up.commands.inputs import expect_config, expect_training_files
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.errors import UserError
from up.files import unwritable, write_json
from up.processors import available_processors

_EXAMPLES = """more examples:
  up bench step --only fixed --rounds 9      the rows whose names contain `fixed`
  up bench all --config photos.yaml          your own recipe: what its step waits for, and what would be faster
  up bench all --json benchmarks/mine.json   everything, with a result file
  up bench all --quick                       check that every cell runs here, in tiny sizes"""
_LOOK_S = 1.0  # seconds for which the load of the machine is measured before


def main(words: list[str]) -> int:
    """Measure the rows of a kind in rounds and print the table; returns the exit code."""
    arguments = _parse(words)
    if arguments.config is not None:
        expect_config(arguments.config, arguments.opts)
        expect_training_files(arguments.config, arguments.opts)
    if arguments.json is not None:
        reason = "is a folder" if arguments.json.is_dir() else unwritable(arguments.json.parent)
        if reason is not None:
            raise UserError(f"--json {arguments.json}: cannot write there: {reason}", fix="Name another file.")
    watch = Watch()
    time.sleep(0.0 if arguments.quick else _LOOK_S)
    others = watch.others()
    require_idle(others, force=arguments.force or arguments.quick or arguments.clock == "cpu")
    gpu = _gpu() if arguments.device != "cpu" else None
    settings = _settings(arguments, "cuda" if gpu else "cpu")
    rows = _rows(arguments, settings.device)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    outcomes = measure(rows, settings, rounds=rounds, cpus=watch.idlest(settings.threads), say=_say)
    _print(outcomes, settings, others)
    if arguments.json is not None:
        from up.bench.results import as_record

        write_json(arguments.json, as_record(outcomes, settings, rounds=rounds, gpu=gpu))
        print(f"written: {arguments.json}")
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = CommandParser("bench")
    parser.epilog = f"{parser.epilog}\n\n{_EXAMPLES}"
    parser.add_argument("kind", choices=(*KINDS, ALL), help="what is measured")
    parser.add_argument("--against", type=_names, default=[], metavar="NAMES", help="peers, such as timm,bare (default: all)")
    parser.add_argument("--only", type=_names, default=[], metavar="NAMES", help="rows whose names contain one of these")
    parser.add_argument("--rounds", type=positive, help="number of fresh processes a cell (default: 5)")
    parser.add_argument("--seconds", type=at_most(3600, amount), default=3.0, help="seconds that a cell measures after its warm-up")
    parser.add_argument("--threads", type=threads, help="threads and CPUs of a cell (default: all CPUs, 16 at most)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the cells that use one")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU time of the process, for a busy machine; meaningful where a cell works in one process",
    )
    parser.add_argument("--force", action="store_true", help="measure even if the machine is busy; the table says so")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: check that every cell runs; not for numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a result file: cells, machine, versions, settings")
    parser.add_config(required=False, what="a recipe of your own, measured instead of the rows")
    return parser.read(words[1:])


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _settings(arguments: argparse.Namespace, device: str) -> Settings:
    if not arguments.seconds > 0:
        raise UserError("--seconds", got=arguments.seconds, expected="a number above 0")
    cpus = available_processors()
    return Settings(
        cache_folder(),
        seconds=0.01 if arguments.quick else arguments.seconds,
        threads=min(cpus, arguments.threads or 16),
        device="cuda" if device == "cuda" else "cpu",
        clock=arguments.clock,
        quick=arguments.quick,
    )


def _rows(arguments: argparse.Namespace, device: str) -> list[Row]:
    own = None if arguments.config is None else rows_for(arguments.kind, arguments.config, arguments.opts, device)
    return chosen(own or rows_of(arguments.kind), device=device, only=arguments.only, against=arguments.against)


def _gpu() -> str | None:
    """Return the name of the GPU; None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print(outcomes: Sequence[Outcome], settings: Settings, before: float) -> None:
    table = table_of(*COLUMNS)
    for line in cells_of(outcomes):
        table.add_row(*line)
    print_tables(table)
    for text in advice(outcomes, available_processors()):
        print(f"advice: {text}")
    disturbed = sum(is_busy(load) for outcome in outcomes for load in outcome.others)
    cells = sum(len(outcome.others) for outcome in outcomes)
    if settings.quick:
        print("--quick: tiny sizes, the numbers mean nothing")
    elif is_busy(before) or disturbed:
        print(f"BUSY MACHINE: other processes used {before:.1f} CPUs before, and disturbed {disturbed} of {cells} cells")
