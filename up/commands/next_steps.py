"""The last lines of a command: its result, the files written, and the next commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from up.command_line import CommandLine
from up.files import BEST, LATEST
from up.run_files import CONFIG, LOG, METRICS, TENSORBOARD

if TYPE_CHECKING:  # they import torch
    from up.distributed.failures import Vote
    from up.engine.session import TrainingSession
    from up.tasks.experiment import Experiment

IMAGE = "IMAGE"


def after_training(
    session: TrainingSession, verdict: Vote, experiment: Experiment, command: CommandLine, overrides: Sequence[str]
) -> Iterator[str]:
    """Yield the last lines of a run: best metric, files and next commands; for a stopped run, the command that resumes it."""
    from up.tracking.summary import best_of, progress

    outline, folder = session.outline, session.outline.folder
    done = progress(session.progress.step, outline.total_steps, outline.steps_per_epoch)
    best = best_of(session.progress.best, outline.steps_per_epoch, experiment.task.unit)
    if verdict.exit_code != 0:
        stays_off = {} if experiment.config.saver.auto_resume else {"saver.auto_resume": "true"}
        yield f"{session.progress.stopped_by or 'stopped'} after {done}; saved {folder / LATEST}"
        yield f"  to resume:  {command.setting(stays_off)}"
        return
    yield f"finished: {', '.join(filter(None, (done, session.progress.stopped_by)))}"
    yield from [best] if best else []
    names = {"best": BEST, "newest": LATEST, "log": LOG, "metrics": METRICS, "curves": TENSORBOARD}
    yield from listed({name: folder / file for name, file in names.items() if (folder / file).exists()})
    test = {} if experiment.config.dataset.test is None else {"evaluate": ("eval",), "report": ("report",)}
    config = experiment.path
    if configuration(config, overrides)[1:] and not experiment.config.runtime.plugins:  # plug-ins may be beside the file
        config, overrides = folder / CONFIG, ()
    yield from next_commands(command, with_checkpoint(test, config, overrides, served=experiment.task.is_served))


def next_commands(command: CommandLine, steps: Mapping[str, Sequence[object]]) -> Iterator[str]:
    """Yield ``next:`` and one command per line with its purpose; ``steps`` are the words after the program."""
    if steps:
        yield "next:"
    yield from listed({purpose: command.other(*words) for purpose, words in steps.items()})


def with_checkpoint(
    first: Mapping[str, Sequence[object]],
    config: Path,
    overrides: Sequence[str],
    checkpoint: Path | None = None,
    *,
    served: bool = True,
) -> dict[str, Sequence[object]]:
    """Return the next steps with a trained checkpoint, after those of ``first``; predict and export if its task is ``served``."""
    named = [] if checkpoint is None else ["--ckpt", checkpoint]
    rest = {"predict": ("predict", IMAGE), "export": ("to_onnx",), "package": ("to_kestrel",)} if served else {}
    steps: dict[str, Sequence[object]] = {**first, **rest}
    return {purpose: [*words, *configuration(config, overrides, *named)] for purpose, words in steps.items()}


def with_package(package: Path, *, verified: bool = False) -> dict[str, Sequence[object]]:
    """Return the next steps with a package or a graph."""
    check = {} if verified else {"verify": ("verify", package)}
    return {**check, "predict": ("predict", IMAGE, "--bundle", package), "serve": ("serve", package)}


def configuration(path: Path, overrides: Sequence[str], *flags: object) -> list[object]:
    """Return the words that name a configuration to a command other than train, with flags before its overrides."""
    kept = [word for word in overrides if not (word.startswith("trainer.") and "=" in word)]
    return [path, *flags, *(["-o", *kept] if kept else [])]


def listed(entries: Mapping[str, object]) -> Iterator[str]:
    """Yield ``  name:  value`` lines with aligned values."""
    width = max((len(name) for name in entries), default=0) + 1
    return (f"  {f'{name}:':<{width}}  {value}" for name, value in entries.items())
