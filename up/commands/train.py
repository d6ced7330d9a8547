"""``up train``: YAML to a trained, evaluated checkpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path

from up.command_line import CommandLine
from up.commands.arguments import launch_of
from up.commands.inputs import expect_config, expect_training_files
from up.commands.train_arguments import overrides_of, parse, shortcut_overrides, shortcuts_of
from up.distributed.launch import launched
from up.distributed.signals import StopRequest, listening, watch_parent
from up.engine.folder import code_of_status
from up.schema.decode import load_config


def main(words: list[str]) -> int:
    """Train from a configuration or a folder of photos; returns the exit code."""
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


def train_rank(config: Path, overrides: list[str], stop: StopRequest, command: CommandLine) -> int:
    """Train in this process, alone or as one rank of many; returns the exit code."""
    # Imported here because it takes seconds: a signal in the meantime is a request to stop like any other.
    from up.build.build import build_run
    from up.build.experiment import load_experiment
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
    with reported_to_peers():
        session = build_run(experiment, stop, command)
    with recorded(session):
        verdict = train(session)
    for line in after_training(session, verdict, experiment, command, overrides) if is_main() else ():
        LOGGER.info(line)
    return verdict.exit_code
