"""``up search``: stages of trials from one YAML file, and its subcommands ``worker``, ``status`` and ``check``."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from up.commands.arguments import add_output, output_of, threads
from up.commands.inputs import expect_config
from up.commands.parser import CommandParser
from up.distributed.signals import handled
from up.errors import UserError
from up.text import count, did_you_mean, some_of
from up.tracking.console import JSON, QUIET, output, write_json_line

if TYPE_CHECKING:
    from up.search.devices import Devices
    from up.search.locks import Presence
    from up.search.stages import Search
    from up.search.worker import Worker

_MORE = """\
subcommands:
  up search worker pipe.yaml     trials for a search that runs elsewhere: on as many hosts as share its run folder
  up search status pipe.yaml     stages, trials and the best so far
  up search check pipe.yaml      every space, constraint and stage, the data, a first step

An interrupted search continues with the same command. docs/search.md explains the section `search` and each algorithm."""
_STOPPED = 75
SUBCOMMANDS = ("worker", "status", "check")


def main(words: list[str]) -> int:
    """Run the stages of a search, or a subcommand; returns the exit code."""
    rest = words[1:]
    subcommand = rest.pop(0) if rest and rest[0] in SUBCOMMANDS else ""
    parser = CommandParser("search")
    parser.prog = f"up search {subcommand}".rstrip()
    parser.epilog = f"{parser.epilog}\n\n{_MORE}"
    if subcommand == "check":
        parser.add_argument(
            "--no-files", action="store_true", help="check the YAML file only, without meta files, images and weights"
        )
    if subcommand in ("", "worker"):
        parser.add_argument("--workers", type=threads, metavar="N", help="trials at once on this host (default: search.workers)")
        add_output(parser)
    parser.add_config()
    if not subcommand and rest and rest[0].isalpha() and not Path(rest[0]).exists():
        expected = f"a YAML file, or one of {some_of(SUBCOMMANDS)}"
        parser.error(f"got {rest[0]!r}, expected {expected}.{did_you_mean(rest[0], SUBCOMMANDS)}")
    arguments = parser.read(rest)
    expect_config(arguments.config, arguments.opts)
    search = _loaded(arguments.config, tuple(arguments.opts))
    if subcommand == "check":
        return check(search, files=not arguments.no_files)
    if subcommand == "status":
        return status(search)
    with output_of(arguments):
        return (work if subcommand else run)(search, arguments.workers)


def run(search: Search, workers: int | None) -> int:
    """Run all stages; returns the exit code: 75 if a signal stopped them, to be continued by the same command."""
    from up.search.check import expect_good

    expect_good(search)
    _devices(search)  # an error before anything is created
    from up.search.check_data import expect_data
    from up.search.page import REPORT
    from up.search.pipeline import run_search
    from up.search.storage import reachable

    expect_data(search)
    with _stoppable() as made, search.decoded.origins.placing("search"), reachable():
        done = run_search(search, _tell, lambda presence: made(search, presence, workers))
    if not done:
        _end(f"stopped; run the same command to continue. Storage: {search.run}", "stopped", search.run)
        return _STOPPED
    _end(f"report: {search.run / REPORT}", "done", search.run / REPORT)
    return 0


def work(search: Search, workers: int | None) -> int:
    """Train trials for a search that another process drives; returns the exit code."""
    from up.search.locks import Presence
    from up.search.pipeline import work_along
    from up.search.storage import reachable

    if not search.run.is_dir():
        raise UserError(f"{search.run} contains no search", fix=f"Start it first: up search --config {search.path}")
    presence = Presence(search.run)
    try:
        with _stoppable() as made, search.decoded.origins.placing("search"), reachable():
            return 0 if work_along(search, made(search, presence, workers), _tell) else _STOPPED
    finally:
        presence.release()


def status(search: Search) -> int:
    """Print the stages with their trials; returns the exit code."""
    from up.search.status import status_lines

    print(*status_lines(search), sep="\n")
    return 0


def check(search: Search, *, files: bool) -> int:
    """Check everything without a trial; returns the exit code."""
    from up.search.check import expect_good, plan_lines

    expect_good(search)
    _devices(search)
    warnings: list[str] = []
    if files:
        from up.search.check_data import expect_data, expect_training

        expect_data(search)
        expect_training(search, warnings.append)
    print(*plan_lines(search), *(f"warning: {each}" for each in warnings), sep="\n")
    told = f", {count(len(warnings), 'warning')}" if warnings else ""
    print(f"OK: {search.path} is valid{told}")
    return 0


def _loaded(config: Path, overrides: tuple[str, ...]) -> Search:
    from up.search.stages import load_search

    return load_search(config, overrides)


def _devices(search: Search) -> Devices:
    """Return the GPUs of this host. Raises ``ConfigError`` where a trial needs more."""
    from up.search.devices import devices_of, visible_gpus
    from up.search.locks import WORKERS

    with search.decoded.origins.placing("search"):
        return devices_of(search.section.gpus_per_trial, visible_gpus(), search.run / WORKERS)


def _tell(line: str) -> None:
    if output() == JSON:
        write_json_line("info", "log", line)
    elif output() != QUIET:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _end(line: str, state: str, path: Path) -> None:
    if output() == JSON:
        write_json_line("info", "result", line, state=state, path=path)
    else:
        print(line)


@contextmanager
def _stoppable() -> Iterator[Callable[[Search, Presence, int | None], Worker]]:
    """Yield a maker of the worker, which the signals in the block stop in order; a second one ends the process."""
    from up.search.worker import Worker

    made: list[Worker] = []

    def make(search: Search, presence: Presence, workers: int | None) -> Worker:
        slots, devices = workers or search.section.workers, _devices(search)
        if 0 < len(devices.groups) < slots:
            _tell(f"{len(devices.groups)} trials at once instead of {slots}: no two share a GPU")
        made.append(Worker(slots, devices, presence, _tell))
        return made[-1]

    def stop(number: int, _frame: object) -> None:
        if not made or made[-1].stopping:
            raise SystemExit(128 + number)
        _tell(f"{signal.Signals(number).name}: the trials save and stop; a second signal stops them at once")
        made[-1].stop()

    with handled(stop):
        yield make
