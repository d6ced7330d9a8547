"""The run folder: where everything of a run lies, and its ``status.json``, the truth about how the run stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from up.errors import UserError
from up.files import write_json

State = Literal["running", "done", "preempted", "failed"]
EARLIER = "earlier"
_OF_A_RUN = (
    "ckpt_*",
    "train.log",
    "metrics.jsonl",
    "status.json",
    "config.yaml",
    "bad_images.jsonl",
    "tensorboard",
    "results",
)


@dataclass(frozen=True)
class Status:
    """The content of ``status.json``."""

    state: State
    exit_code: int | None = None
    step: int = 0
    epoch: int = 0
    checkpoint: str | None = None
    reason: str = ""
    file: str | None = None
    line: int | None = None


def open_run_folder(folder: Path) -> None:
    """Create the folder, or say why it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".tmp-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}). Choose another folder.") from error


def write_status(folder: Path, status: Status) -> None:
    """Put ``status.json`` in place atomically."""
    write_json(folder / "status.json", asdict(status))


def set_earlier_run_aside(folder: Path) -> Path | None:
    """Move what an earlier run left into ``earlier/N``, so that a fresh start neither mixes with it nor destroys it."""
    left = [path for pattern in _OF_A_RUN for path in folder.glob(pattern)]
    if not any(path.name.startswith("ckpt_") or path.name == "metrics.jsonl" for path in left):
        return None
    number = 1
    while (folder / EARLIER / str(number)).exists():
        number += 1
    aside = folder / EARLIER / str(number)
    aside.mkdir(parents=True)
    for path in left:
        path.rename(aside / path.name)
    return aside
