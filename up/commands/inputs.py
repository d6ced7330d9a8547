"""Check files that the command line names, before torch is imported: they exist and are of the expected kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from up.distributed.env import world_in_environment
from up.errors import ConfigError, Problem, UserError
from up.file_kinds import NAMES, Kind, kind_of
from up.files import existing_run, named_checkpoint, unwritable
from up.text import Verbatim, did_you_mean

if TYPE_CHECKING:
    from up.tasks.experiment import Experiment

_PACKAGES = "`up predict --bundle {path}` and `up verify {path}` read it."
_INSTEAD_OF_CHECKPOINT: dict[Kind, str] = {
    "folder": "Name a file in it, such as {path}/ckpt_best.pth.",
    "package": _PACKAGES,
    "onnx": _PACKAGES,
    "yaml": "Name it with --config, and a .pth file with --ckpt.",
    "image": "Name a .pth file that `up train` wrote.",
    "archive": "Unpack it and name the .pth file in it.",
}
_INSTEAD_OF_PACKAGE: dict[Kind, str] = {
    "folder": "Name a .tar or .onnx file in it.",
    "weights": "Name it with --config FILE.yaml --ckpt {path}, or export it with `up to_kestrel` first.",
    "yaml": "Name it with --config, or the .tar that `up to_kestrel` made with --bundle.",
    "image": "Name the .tar that `up to_kestrel` made, or the .onnx of `up to_onnx`.",
}
_INSTEAD_OF_ONLY_PACKAGE: dict[Kind, str] = {  # of commands that take nothing else
    **_INSTEAD_OF_PACKAGE,
    "weights": "Export it with `up to_kestrel FILE.yaml --ckpt {path}` first, and name the .tar.",
    "yaml": "Name the .tar that `up to_kestrel {path}` writes.",
}
_INSTEAD_OF_CONFIG: dict[Kind, str] = {
    "folder": "`up train {path}` trains on a folder of photos and writes the YAML file for the other commands.",
    "weights": "Name it with --ckpt, and the YAML file that it was trained from with --config.",
    "package": _PACKAGES,
    "onnx": _PACKAGES,
    "image": "Name the YAML file of the training.",
    "archive": "Name the YAML file of the training.",
}


def expect_config(path: Path, overrides: Sequence[str]) -> None:
    """Raise ``UserError`` for another kind of file at ``path``, ``ConfigError`` for problems of the configuration there.

    One rank of many does not check here: it must report to the others what it alone lacks (``failures.local_phase``).
    """
    if world_in_environment() > 1:
        return
    if path.exists():
        _expect_kind(path, "", "a YAML file", _INSTEAD_OF_CONFIG)
    from up.schema.decode import load_config

    load_config(path, overrides)


def load_checked(path: Path, overrides: Sequence[str], *, of_run: bool = False) -> Experiment:
    """Load the experiment once its configuration is known to be good, and only then import torch.

    ``of_run``: ``config.yaml`` in a run folder stands for this folder, also where it was moved.
    """
    if of_run and path.is_file():
        from up.schema.decode import config_of_run

        path, overrides = config_of_run(path, overrides)
    expect_config(path, overrides)
    from up.build.experiment import load_experiment

    return load_experiment(path, overrides)


def expect_training_files(path: Path, overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` for missing meta files, image folders and weights.

    The files of a plug-in's data set are checked once its class is imported.
    """
    if world_in_environment() > 1:
        return
    from up.schema.decode import load_config, missing_at, missing_start_weights
    from up.tasks.cls.data.files import DATASETS, named_paths

    decoded = load_config(path, overrides)
    config = decoded.config
    problems: list[Problem] = []
    for name, source in (("train", config.dataset.train), ("test", config.dataset.test)):
        if source is not None and source.dataset.type in DATASETS:
            for key, file in named_paths(source.dataset.kwargs):
                problems += missing_at(f"dataset.{name}.dataset.kwargs.{key}", file) if file is not None else ()
    problems += missing_start_weights(config, config.saver.folder(path))
    if problems:
        raise ConfigError(decoded.origins.locate(problems))


def expect_run(path: Path, overrides: Sequence[str]) -> None:
    """Raise ``UserError`` unless ``path`` is a folder or a good configuration."""
    if not existing_run(path).is_dir():
        expect_config(path, overrides)


def expect_checkpoint(path: Path | None) -> None:
    """Raise ``UserError`` unless the path of ``--ckpt`` may be a checkpoint."""
    if path is not None and world_in_environment() == 1:
        suffixes = (".pth", ".pt", ".ckpt", ".safetensors")
        _expect(named_checkpoint(path), "--ckpt ", "a checkpoint (.pth)", _INSTEAD_OF_CHECKPOINT, suffixes)


def expect_test_images(path: Path | None) -> None:
    """Raise ``UserError`` unless the path of ``--test`` exists."""
    if path is not None and world_in_environment() == 1:
        from up.tasks.cls.data.files import expect_images

        expect_images(path, "--test")


def expect_package(path: Path | None, flag: str = "--bundle ") -> None:
    """Raise ``UserError`` unless the path of ``--bundle`` may be a package."""
    if path is not None:
        instead = _INSTEAD_OF_PACKAGE if flag else _INSTEAD_OF_ONLY_PACKAGE
        _expect(path, flag, "a package (.tar) or graph (.onnx)", instead, (".tar", ".onnx"))


def _expect(path: Path, flag: str, expected: str, instead: dict[Kind, str], suffixes: tuple[str, ...]) -> None:
    if not path.exists():
        fix = f"The folder {path.parent} does not exist either."
        if path.parent.is_dir():
            fix = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir() if entry.suffix in suffixes]).strip()
        raise UserError(f"{flag}{path}: no such file", expected=expected, fix=fix)
    _expect_kind(path, flag, expected, instead)


def _expect_kind(path: Path, flag: str, expected: str, instead: dict[Kind, str]) -> None:
    kind = kind_of(path)
    if kind in instead:
        raise UserError(f"{flag}{path}", got=Verbatim(NAMES[kind]), expected=expected, fix=instead[kind].format(path=path))


def expect_writable(out: Path) -> None:
    """Raise ``UserError`` if nothing can be written to the folder of ``--out``, before long work whose result would be lost."""
    if (reason := unwritable(out)) is not None:
        raise UserError(f"--out {out}: cannot write there: {reason}", fix="Name another folder.")
