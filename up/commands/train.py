"""``up train``: YAML to a trained, evaluated checkpoint."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from up.command_line import CommandLine
from up.commands.arguments import launch_of, output_of
from up.commands.inputs import expect_config, expect_training_files
from up.commands.parser import speaks_for_all
from up.commands.train_arguments import overrides_of, parse, request_of, shortcut_overrides
from up.distributed.launch import Launch, launched
from up.distributed.signals import StopRequest, listening, watch_parent
from up.engine.folder import code_of_status
from up.errors import UserError
from up.schema.decode import load_config
from up.tracking.console import tell

if TYPE_CHECKING:
    from up.finetune.choose import FinetuneRequest


def main(words: list[str]) -> int:
    """Train from a configuration or a folder of photos; returns the exit code."""
    arguments = parse(words)
    with output_of(arguments):
        return run(arguments, words)


def run(arguments: argparse.Namespace, words: list[str]) -> int:
    """Train, or evaluate, as the arguments say; returns the exit code."""
    overrides = overrides_of(arguments)
    if arguments.config.is_dir():
        return train_on(request_of(arguments), overrides, launch_of(arguments), words)
    expect_config(arguments.config, overrides)
    overrides += shortcut_overrides(arguments, overrides)
    if arguments.evaluate or arguments.phase != "train":
        from up.commands.eval import evaluate

        code = launched(launch_of(arguments), words, lambda: None)
        command = CommandLine.typed(words)
        # UP's command evaluates whatever the file names, with a warning
        return evaluate(arguments.config, overrides, None, None, command, allow_trained_images=True) if code is None else code
    return launch_and_train(arguments.config, overrides, launch_of(arguments), words, CommandLine.typed(words))


def train_on(request: FinetuneRequest, overrides: list[str], launch: Launch, words: list[str]) -> int:
    """Write the configuration and train with it; returns the exit code. Reruns resume, finished runs have nothing to do."""
    from up.finetune.prepare import prepared

    typed = CommandLine.typed(words)
    with prepared(request, overrides) as made:
        if speaks_for_all():
            tell(*made.choices.lines(), f"configuration: {made.config}. To repeat or change this training: up train {made.config}")
        expect_config(made.config, overrides)
        command = replace(typed, words=("train", str(made.config), *(["-o", *overrides] if overrides else [])))
        code = launch_and_train(made.config, overrides, launch, words, command, estimates=True)
        if code == UserError.exit_code:
            made.withdraw()
        return code


def launch_and_train(
    config: Path, overrides: list[str], launch: Launch, words: list[str], command: CommandLine, *, estimates: bool = False
) -> int:
    """Train in this process, or in ranks that run ``words``; messages suggest ``command`` with other values.

    ``estimates``: print an estimate of time and memory before a new run.
    """
    expect_training_files(config, overrides)
    if launch.launcher(os.environ) is not None:
        folder = load_config(config, overrides).config.saver.folder(config)
        begun = time.time()
        code = launched(launch, words, lambda: code_of_status(folder, since=begun))
        if code is not None:
            return code
    with listening() as stop:
        watch_parent(stop, os.environ)
        return train_rank(config, overrides, stop, command, estimates=estimates)


def train_rank(config: Path, overrides: list[str], stop: StopRequest, command: CommandLine, *, estimates: bool = False) -> int:
    """Train in this process, alone or as one rank of many; returns the exit code."""
    # Imported here because it takes seconds: a signal in the meantime is a request to stop like any other.
    from up.build.build import build_run
    from up.build.experiment import load_experiment
    from up.build.trial import estimate_line
    from up.commands.next_steps import after_training
    from up.distributed.failures import local_phase, reported_to_peers
    from up.distributed.group import is_main
    from up.engine.ending import recorded
    from up.engine.folder import begin_launch, final_status_of_earlier_attempt
    from up.engine.loop import train
    from up.tracking.log import LOGGER

    with local_phase():
        experiment = load_experiment(config, overrides)
    begin_launch(experiment.folder)
    earlier = final_status_of_earlier_attempt(experiment.folder)
    if earlier is not None:
        return earlier.exit_code or 0
    if estimates and speaks_for_all() and (line := estimate_line(experiment)):
        tell(line)
    with reported_to_peers():
        session = build_run(experiment, stop, command)
    with recorded(session):
        verdict = train(session)
    best = {"step": session.progress.step, "best": session.progress.best, "folder": str(session.outline.folder)}
    for number, line in enumerate(after_training(session, verdict, experiment, command, overrides) if is_main() else ()):
        is_result = number == 0 or line.startswith(("best ", "  best:"))
        event = {"event": "result", "fields": best if number == 0 else {}} if is_result else {}
        LOGGER.info("%s", line, extra={"whole": True, **event})
    return verdict.exit_code
