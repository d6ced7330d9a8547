"""``up report``: the page of a run."""

from __future__ import annotations

from pathlib import Path

from up.commands.inputs import expect_checkpoint, expect_run
from up.commands.parser import CommandParser


def main(words: list[str]) -> int:
    """Write report.html and report.json into the run folder; returns the exit code."""
    parser = CommandParser("report")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or the YAML file that it was trained from")
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the best of the run, an average included)")
    parser.add_overrides(parser.add_argument_group("configuration"))
    arguments = parser.read(words[1:])
    expect_run(arguments.run, arguments.opts)
    expect_checkpoint(arguments.ckpt)
    from up.report.folder import open_run
    from up.report.run import write_report

    run = open_run(arguments.run, arguments.opts)
    with run.experiment.plugin_errors():
        written = write_report(run, arguments.ckpt)
    print(*written.lines, sep="\n")
    for line in written.missing:
        print(f"not on the page: {line}")
    print("written:", *written.files, sep="\n  ")
    return 0
