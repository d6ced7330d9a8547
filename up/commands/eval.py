"""``up eval``: a checkpoint on the test data, with reports."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from up.commands.arguments import add_config, add_launch, command_parser, launch_of, without_meaningless
from up.distributed import is_main
from up.experiment import load_experiment
from up.launch import launched
from up.together import before_joining, last_words
from up.trained import evaluate_checkpoint

NO_WEIGHTS = (
    "there is no checkpoint and saver.pretrain_model is not set, so these predictions are those of random weights. "
    "Name a checkpoint with --ckpt FILE."
)


def main(words: list[str]) -> int:
    """Evaluate and write metrics.json, per_class.csv, confusion.csv and .png, predictions.csv; returns the exit code."""
    parser = command_parser("eval", "Evaluate a checkpoint on dataset.test and write reports per class.")
    parser.add_argument("-c", "--ckpt", type=Path, help="the checkpoint (default: the run's ckpt_best.pth, else ckpt_latest.pth)")
    parser.add_argument("--out", type=Path, help="folder of the reports (default: saver.results_dir, else the run's results)")
    add_launch(parser)
    add_config(parser)
    arguments = parser.parse_args(without_meaningless(words[1:]))
    code = launched(launch_of(arguments), words, lambda: None)
    if code is not None:
        return code
    with before_joining():
        experiment = load_experiment(arguments.config, arguments.opts)
    with last_words():
        metrics, written, checkpoint = evaluate_checkpoint(experiment, arguments.ckpt, arguments.out)
    if not is_main():
        return 0
    if checkpoint is None:
        print(f"warning: {NO_WEIGHTS}", file=sys.stderr)
    else:
        print(checkpoint)
    table = Table("metric", experiment.plugin.unit)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
    print("written:", *written, sep="\n  ")
    return 0
