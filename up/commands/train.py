"""``up train``: YAML to a trained, evaluated checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from up.command_line import CommandLine
from up.commands.arguments import add_launch, backend_overrides, finite, launch_of, positive
from up.commands.inputs import expect_config, expect_training_files
from up.commands.parser import CommandParser, speaks_for_all
from up.commands.shortcuts import Shortcuts
from up.distributed.launch import launched
from up.distributed.signals import StopRequest, listening, watch_parent
from up.engine.folder import code_of_status
from up.schema.decode import load_config


def main(words: list[str]) -> int:
    """Train as the configuration says; returns the exit code."""
    arguments = parse(words)
    overrides = overrides_of(arguments)
    if arguments.config.is_dir():
        from up.commands.folder import config_for

        arguments.config = config_for(arguments.config, shortcuts_of(arguments), overrides)
        expect_config(arguments.config, overrides)
    else:
        expect_config(arguments.config, overrides)
        overrides += shortcut_overrides(arguments, overrides)
    is_training = not arguments.evaluate and arguments.phase == "train"
    if is_training:
        expect_training_files(arguments.config, overrides)
    launch = launch_of(arguments)
    if launch.launcher(os.environ) is not None:
        folder = load_config(arguments.config, overrides).config.saver.folder(arguments.config)
        begun = time.time()
        code = launched(launch, words, lambda: code_of_status(folder, since=begun))
        if code is not None:
            return code
    if not is_training:
        from up.commands.eval import evaluate

        return evaluate(arguments.config, overrides, None, None, CommandLine.typed(words))
    with listening() as stop:
        watch_parent(stop, os.environ)
        return train_rank(arguments.config, overrides, stop, CommandLine.typed(words))


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of ``up train``."""
    parser = CommandParser("train")
    parser.add_argument("-e", "--evaluate", action="store_true", help="evaluate only, like `up eval`")
    parser.add_argument("--phase", choices=("train", "eval"), default="train", help="eval means the same as --evaluate")
    parser.add_argument("--display", type=positive, metavar="N", help="steps between log lines (default: trainer.log_interval)")
    parser.add_argument("--allow-dead-parameter", action="store_true", help="allow parameters that get no gradient")
    parser.add_argument(
        "--accept-data-change", action="store_true", help="resume even though the training data changed since the checkpoint"
    )
    parser.add_argument("--fork-method", choices=("fork", "spawn"), help="start method of the loader workers (default: fork)")
    group = parser.add_argument_group("values of the configuration")
    group.add_argument("--epochs", type=positive, metavar="N", help="train for N epochs; the learning-rate schedule is scaled")
    group.add_argument("--lr", type=finite, help="learning rate of the optimizer")
    group.add_argument("--batch-size", type=positive, metavar="N", help="images per step and process")
    group.add_argument("--img-size", type=positive, metavar="PIXELS", help="image size; resize and crop keep their ratio")
    add_launch(parser)
    parser.add_config(what="the configuration; or a folder with one folder of photos per class, for which one is written")
    return parser.read(words[1:])


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """``-o`` and the flags that set a value of the configuration."""
    overrides = [*arguments.opts, *backend_overrides(arguments)]
    if arguments.display is not None:
        overrides.append(f"trainer.log_interval={arguments.display}")
    if arguments.allow_dead_parameter:
        overrides.append("runtime.allow_dead_parameter=true")
    if arguments.accept_data_change:
        overrides.append("saver.accept_data_change=true")
    if arguments.fork_method is not None:
        overrides.append(f"dataset.train.dataloader.kwargs.fork_method={arguments.fork_method}")
    return overrides


def shortcuts_of(arguments: argparse.Namespace) -> Shortcuts:
    """What ``--epochs``, ``--lr``, ``--batch-size`` and ``--img-size`` say."""
    return Shortcuts(arguments.epochs, arguments.lr, arguments.batch_size, arguments.img_size)


def shortcut_overrides(arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """The overrides that the short flags stand for in this file; says which."""
    found = shortcuts_of(arguments).overrides(arguments.config, overrides)
    if speaks_for_all():
        for flag, made in found.items():
            print(f"{flag} sets {', '.join(made)}", file=sys.stderr)
    return [override for made in found.values() for override in made]


def train_rank(config: Path, overrides: list[str], stop: StopRequest, command: CommandLine) -> int:
    """Train in this process, alone or as one rank of many; returns the exit code."""
    # Imported here, seconds long: a signal that comes meanwhile is a request to stop like any other.
    from up.build.build import build_run
    from up.build.experiment import load_experiment
    from up.commands.next_steps import after_training
    from up.distributed.failures import last_words, local_phase
    from up.distributed.group import is_main
    from up.engine.ending import recorded
    from up.engine.folder import begin_launch, verdict_of_earlier_attempt
    from up.engine.loop import train
    from up.tracking.log import LOGGER

    with local_phase():
        experiment = load_experiment(config, overrides)
    begin_launch(experiment.folder)
    earlier = verdict_of_earlier_attempt(experiment.folder)
    if earlier is not None:
        return earlier.exit_code or 0
    with last_words():
        session = build_run(experiment, stop, command)
    with recorded(session):
        verdict = train(session)
    for line in after_training(session, verdict, experiment, command, overrides) if is_main() else ():
        LOGGER.info(line)
    return verdict.exit_code
