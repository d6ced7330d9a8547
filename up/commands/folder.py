"""``up train FOLDER``: write the configuration for a folder of photos next to the run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from up.commands.parser import speaks_for_all
from up.commands.shortcuts import Shortcuts
from up.config.nodes import parse_nodes
from up.errors import UserError
from up.files import make_folder, write_text
from up.schema.decode import decode
from up.schema.overrides import apply_overrides
from up.tasks.cls.data.photos import PRETRAINED, SMALL, look_into, meta_lines, recipe_for, summary, yaml_of


def config_for(folder: Path, shortcuts: Shortcuts, overrides: Sequence[str]) -> Path:
    """Write the configuration, and the meta files of a split, for the photos in ``folder``; returns its path.

    Files of an earlier run with the same content stay. Raises ``UserError`` for a folder without classes, for faults of
    ``overrides`` before anything is written, and for an existing file with other content.
    """
    photos = look_into(folder)
    chosen = partial(
        recipe_for, photos, img_size=shortcuts.img_size, epochs=shortcuts.epochs, lr=shortcuts.lr, batch_size=shortcuts.batch_size
    )
    plain = chosen(None)
    run = Path("runs") / (folder.resolve().name or "photos")
    text = yaml_of(photos, plain, run)
    saver = decode(apply_overrides(parse_nodes(text, f"{run}.yaml"), overrides)).config.saver
    run = Path(saver.save_dir or run)
    downloaded = plain.img_size > SMALL and _is_downloaded()
    recipe = chosen(saver.pretrain_model or (PRETRAINED if downloaded else None))
    files = {Path(f"{run}.yaml"): yaml_of(photos, recipe, run)}
    if photos.validate is None:
        parts = zip(("train", "val"), photos.split(), strict=True)
        files |= {run / f"{name}.jsonl": meta_lines(samples) for name, samples in parts}
    path = next(iter(files))
    _write(files, path, folder)
    if speaks_for_all():
        print(*summary(photos, recipe, run, downloaded=downloaded), sep="\n", file=sys.stderr)
        print(f"configuration: {path}. To repeat or change this training: up train {path}", file=sys.stderr)
    return path


def _is_downloaded() -> bool:
    from up.models.pretrained import is_downloaded

    return is_downloaded(PRETRAINED)


def _write(files: dict[Path, str], config: Path, folder: Path) -> None:
    there = {path: path.read_text(encoding="utf-8") for path in files if path.is_file()}
    for path, text in there.items():
        if text != files[path]:
            what = f"exists, and differs from what `up train {folder}` would write: it was edited, or photos or flags changed"
            anew = f"up train {folder} -o saver.save_dir={config.with_suffix('')}-2"
            raise UserError(what, file=path, fix=f"Train with it: up train {config}; or start anew in another folder: {anew}.")
    for path, text in files.items():
        if path not in there:
            make_folder(path.parent)
            write_text(path, text)
