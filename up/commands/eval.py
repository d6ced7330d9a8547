"""``up eval``: evaluate a checkpoint on the test data, with reports."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from up.command_line import CommandLine
from up.commands.arguments import add_launch, add_output, backend_overrides, launch_of, output_of
from up.commands.inputs import expect_checkpoint, expect_config, expect_test_images
from up.commands.next_steps import next_commands, with_checkpoint
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.distributed.launch import launched
from up.intervals import Interval
from up.tracking.console import JSON, QUIET, output, write_json_line


def main(words: list[str]) -> int:
    """Evaluate and write metrics.json, per_class.csv, confusion.csv and .png, predictions.csv; returns the exit code."""
    parser = CommandParser("eval")
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the best of the run, an average included)")
    parser.add_argument(
        "--test", type=Path, metavar="DIR_OR_LIST", help="images to evaluate: class folders, or a list (default: dataset.test)"
    )
    default = "saver.results_dir, else results in the run folder; with --test NAME, results_NAME beside it"
    parser.add_argument("--out", type=Path, help=f"folder for the reports (default: {default})")
    parser.add_argument("--fork-method", choices=("fork", "spawn"), help="start method of the loader workers (default: fork)")
    what = "evaluate images that the checkpoint was trained on, too, instead of stopping with exit code 2"
    parser.add_argument("--allow-trained-images", action="store_true", help=what)
    add_output(parser)
    add_launch(parser)
    parser.add_config(what="the YAML file, or the run folder")
    arguments = parser.read(words[1:])
    from up.schema.decode import config_of_run

    config, overrides = config_of_run(arguments.config, [*arguments.opts, *backend_overrides(arguments)])
    if arguments.fork_method is not None:
        overrides.append(f"dataset.test.dataloader.kwargs.fork_method={arguments.fork_method}")
    with output_of(arguments):
        expect_checkpoint(arguments.ckpt)
        expect_config(config, overrides)
        expect_test_images(arguments.test)
        code = launched(launch_of(arguments), words, lambda: None)
        command = CommandLine.typed(words)
        if code is not None:
            return code
        allowed: bool = arguments.allow_trained_images
        test: Path | None = arguments.test
        return evaluate(config, overrides, arguments.ckpt, arguments.out, command, allow_trained_images=allowed, test=test)


def evaluate(
    config: Path,
    overrides: list[str],
    checkpoint: Path | None,
    out: Path | None,
    command: CommandLine,
    *,
    allow_trained_images: bool = False,
    test: Path | None = None,
) -> int:
    """Evaluate in this process, alone or as one rank of many; rank 0 prints the metrics and the files written.

    ``test``: a folder or list of images to evaluate instead of those of ``dataset.test``.
    """
    from up.build.experiment import load_experiment
    from up.build.trained import NO_WEIGHTS, evaluate_checkpoint
    from up.distributed.failures import local_phase, reported_to_peers
    from up.distributed.group import is_main

    with local_phase():
        experiment = load_experiment(config, overrides)
    with reported_to_peers(), experiment.plugin_errors():
        metrics, intervals, written, read = evaluate_checkpoint(
            experiment, checkpoint, out, allow_trained_images=allow_trained_images, test=test
        )
    if not is_main():
        return 0
    source = NO_WEIGHTS if read is None else str(read.source)
    if output() == JSON:
        limits = {name: list(interval) for name, interval in intervals.items()}
        fields = {"metrics": metrics, "intervals": limits, "unit": experiment.task.unit, "written": written}
        write_json_line("info", "result", source, **fields)
        return 0
    if output() == QUIET:
        print_tables(table_of_metrics(metrics, intervals, experiment.task.unit))
        return 0
    if read is None:
        print(f"warning: {NO_WEIGHTS}", file=sys.stderr)
    else:
        print(read.source, *read.remarks(), sep="\n")
    print_tables(table_of_metrics(metrics, intervals, experiment.task.unit))
    print("written:", *written, sep="\n  ")
    for line in next_commands(command, with_checkpoint({}, config, overrides, checkpoint, served=experiment.task.is_served)):
        print(line)
    return 0


def table_of_metrics(metrics: Mapping[str, float], intervals: Mapping[str, Interval], unit: str) -> Table:
    """Return a table with one row per metric, in ``unit`` except losses, with its interval and images where it has them."""
    table = table_of("metric", "value", "unit", *(["95 % interval"] if intervals else []))
    for name, value in metrics.items():
        is_loss = name.endswith("loss")
        limits = [str(intervals.get(name, ""))] if intervals else []
        table.add_row(name, f"{value:.4f}" if is_loss else f"{value:.2f}", "" if is_loss else unit, *limits)
    return table
