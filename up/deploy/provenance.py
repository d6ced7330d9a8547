"""Origin of an export: only values that are the same when it is made again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import torch

import up
from up.build.record import version_of
from up.bundle.manifest import Provenance
from up.engine.checkpoint import read_sidecar
from up.errors import UserError
from up.files import sha256_of
from up.schema.show import effective_yaml
from up.tasks.experiment import Experiment

_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")
_GIT_S = 10
_EPOCH = "SOURCE_DATE_EPOCH"
_LATEST = 8**11 - 1  # in the year 2242: the largest time that a tar can hold


def provenance_of(experiment: Experiment, checkpoint: Path) -> Provenance:
    """Describe an export of ``checkpoint`` by the configuration."""
    config = effective_yaml(experiment.config)
    return Provenance(
        up=up.__version__,
        git=commit_of(Path(up.__file__).parent),
        config=config,
        config_sha256=sha256(config.encode()).hexdigest(),
        checkpoint_sha256=sha256_of(checkpoint),
        data_sha256=recorded_texts(checkpoint).get("data_sha256"),
        created=created_at(checkpoint).isoformat(timespec="seconds"),
        packages={name: found for name in _PACKAGES if (found := version_of(name))},
    )


def archive_time() -> int:
    """Return the time of the members of an archive: SOURCE_DATE_EPOCH, else 0. Raises ``UserError`` unless that is a time."""
    said = os.environ.get(_EPOCH, "")
    if said and (not said.isdecimal() or int(said) > _LATEST):
        raise UserError(f"{_EPOCH}: got {said!r}, expected seconds since 1970, at most {_LATEST:,}.")
    return int(said or 0)


def created_at(checkpoint: Path) -> datetime:
    """Return SOURCE_DATE_EPOCH, else the time the checkpoint was saved: the time of the export would differ every time."""
    if os.environ.get(_EPOCH):
        return datetime.fromtimestamp(archive_time(), UTC)
    sidecar = read_sidecar(checkpoint)
    if sidecar is not None:
        return datetime.fromisoformat(sidecar.saved)
    return datetime.fromtimestamp(int(checkpoint.stat().st_mtime), UTC)


def commit_of(folder: Path) -> str | None:
    """Return the commit of the repository that tracks ``folder``; None without a repository or git."""
    try:
        tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "rev-parse", "HEAD") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, encoding="utf-8", errors="replace", timeout=_GIT_S, check=True
    )
    return done.stdout.strip()


def recorded_texts(checkpoint: Path) -> Mapping[str, str]:
    """Read the texts in a checkpoint of ours; its tensors stay on the disk."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of another format, which `read_state` can read: it has no such texts
        return {}
    return {} if not isinstance(state, dict) else {key: value for key, value in state.items() if isinstance(value, str)}
