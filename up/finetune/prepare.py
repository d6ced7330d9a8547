"""Write the YAML file and the meta files of a request; they are removed again if the training cannot start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from up.config.nodes import parse_nodes
from up.errors import UserError
from up.files import make_folder, unwritable, write_text
from up.finetune.choose import Choices, FinetuneRequest, Machine, choose
from up.finetune.images import look_into
from up.finetune.recipe import meta_files, yaml_of
from up.run_files import CONFIG, METRICS, STATUS
from up.schema.decode import decode
from up.schema.overrides import apply_overrides
from up.schema.strategies import STRATEGIES
from up.text import did_you_mean, some_of

_RUN_FILES = (CONFIG, STATUS, METRICS)


@dataclass(frozen=True)
class Prepared:
    """A configuration on disk with the choices that it is made of."""

    config: Path
    choices: Choices
    created: Sequence[Path]

    def withdraw(self) -> None:
        """Remove what was created, unless training has begun in the run folder."""
        if any((self.choices.run / name).exists() for name in _RUN_FILES):
            return
        for path in sorted(self.created, key=lambda path: -len(path.parts)):
            if path.is_file():
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def prepared(request: FinetuneRequest, overrides: Sequence[str] = ()) -> Iterator[Prepared]:
    """Write the configuration ``RUN.yaml`` and the meta files of a split, for the block to train with.

    Files of an earlier call with the same content stay. They are removed again if the block raises ``UserError`` before it
    has made the run folder. Raises ``UserError`` for an invalid request, invalid ``overrides`` and an existing file with other
    content, before anything is written.
    """
    choices = chosen(request, overrides)
    config = Path(f"{choices.run}.yaml")
    _expect_free(choices.run, config)
    made = Prepared(config, choices, _write({config: yaml_of(choices), **meta_files(choices)}, config))
    try:
        yield made
    except UserError:
        made.withdraw()
        raise


def chosen(request: FinetuneRequest, overrides: Sequence[str] = ()) -> Choices:
    """Make all choices; ``saver.save_dir`` and ``saver.pretrain_model`` of the overrides win. Writes nothing."""
    _expect_positive(request)
    images, machine = look_into(request.train, request.val), Machine.here()
    _expect_strategy(request.strategy)
    choices = choose(request, images, machine)
    if not overrides:
        return choices
    saver = decode(apply_overrides(parse_nodes(yaml_of(choices), f"{choices.run}.yaml"), overrides)).config.saver
    moved = Path(saver.save_dir) if saver.save_dir and Path(saver.save_dir) != choices.run else None
    weights = saver.pretrain_model if saver.pretrain_model != choices.network.weights else None
    if moved is None and weights is None:
        return choices
    return choose(replace(request, out=moved or request.out, weights=weights or request.weights), images, machine)


def _expect_positive(request: FinetuneRequest) -> None:
    for name in ("epochs", "lr", "batch_size", "img_size"):
        value = getattr(request, name)
        if value is not None and not value > 0:
            expected = "a number above 0" if name == "lr" else "a whole number above 0"
            raise UserError(f"--{name.replace('_', '-')}", got=value, expected=expected)


def _expect_strategy(name: str | None) -> None:
    if name is not None and name not in STRATEGIES:
        near = did_you_mean(name, STRATEGIES).strip()
        raise UserError(f"--strategy {name}: no such strategy", expected=some_of(STRATEGIES), fix=near)


def _expect_free(run: Path, config: Path) -> None:
    """Raise ``UserError`` for a run folder that cannot be written to, or that holds a run of another configuration."""
    reason = "is a file" if run.is_file() else unwritable(run if run.is_dir() else run.parent)
    if reason is not None:
        raise UserError(f"--out {run}: cannot write there: {reason}", fix="Name another folder.")
    found = [name for name in _RUN_FILES if (run / name).is_file()]
    if found and not config.is_file():
        what = f"--out {run}: contains another run ({some_of(found)}), which {config} does not describe"
        raise UserError(what, fix=f"Name another folder, such as --out {run}-2.")


def _write(files: dict[Path, str], config: Path) -> list[Path]:
    """Write the files that do not exist; returns them. Raises ``UserError`` if one exists with other content."""
    there = {path: path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()}
    for path, text in there.items():
        if text != files[path]:
            what = "exists and differs from the file to be written: it was edited, or images or arguments changed"
            other = f"--out {config.with_suffix('')}-2"
            raise UserError(what, file=path, fix=f"Train with it: up train {config}; or start a new run: {other}.")
    created = []
    for path, text in files.items():
        if path not in there:
            created += [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
            make_folder(path.parent)
            write_text(path, text)
            created.append(path)
    return created
