"""Files and folders that a configuration names and the disk does not have. Needs no torch, so a wrong path is answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from up.errors import Problem
from up.files import LATEST, named_checkpoint
from up.schema.sections import Config


def missing_at(key: str, path: str | None) -> Iterator[Problem]:
    """The problem that there is nothing at ``path``, which ``key`` sets."""
    remedy = f"Set it in the file, or with --opts {key}=PATH."
    if path is None:
        yield Problem(f"is not set. {remedy}", key=key)
    elif not Path(path).exists():
        yield Problem(f"no such file or folder: {path}. Put it there, or name another: --opts {key}=PATH.", key=key)


def missing_start_weights(config: Config, folder: Path) -> Iterator[Problem]:
    """Weights and checkpoints of ``saver``; ``folder`` is the run folder, whose own checkpoint comes before ``resume_model``."""
    resumes = config.saver.auto_resume and (folder / LATEST).exists()
    for key in ("pretrain_model",) if resumes else ("pretrain_model", "resume_model"):
        path = getattr(config.saver, key)
        if path is not None and ":" not in path:  # "timm:resnet50.a1_in1k" is no path
            yield from missing_at(f"saver.{key}", str(named_checkpoint(path)) if key == "resume_model" else path)
