"""Missing files and folders that a configuration names, found without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from up.errors import Problem
from up.files import LATEST, named_checkpoint
from up.schema.sections import Config


def missing_at(key: str, path: str | None) -> Iterator[Problem]:
    """Yield a problem if nothing is at ``path``, the value of ``key``."""
    if path is None:
        yield Problem("is not set", key=key, fix=f"Set it in the file, or with --opts {key}=PATH.")
    elif not Path(path).exists():
        fix = f"Put it there, or name another: --opts {key}=PATH."
        yield Problem(f"no such file or folder: {path}", key=key, fix=fix)


def missing_start_weights(config: Config, folder: Path) -> Iterator[Problem]:
    """Yield missing weights and checkpoints of ``saver``; a checkpoint in the run ``folder`` is used before ``resume_model``."""
    resumes = config.saver.auto_resume and (folder / LATEST).exists()
    for key in ("pretrain_model",) if resumes else ("pretrain_model", "resume_model"):
        path = getattr(config.saver, key)
        if path is not None and ":" not in path:  # "timm:resnet50.a1_in1k" is no path
            yield from missing_at(f"saver.{key}", str(named_checkpoint(path)) if key == "resume_model" else path)
