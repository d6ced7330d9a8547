"""Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from up.tracking.trackers.tracker import End, TrackedRun, Tracker


class WandB(Tracker):
    """Weights & Biases (wandb): scalars, configuration and best metric of the run.

    ``name``: that of the run folder when left out. ``mode``: the variable WANDB_MODE, else online. ``folder``: of the local
    files; the run folder when left out. ``wandb login`` or the variable WANDB_API_KEY gives access. With ``mode: offline``
    each start of the run leaves a folder ``wandb/offline-run-…`` with the same run id: ``wandb sync`` sends them to one line.
    """

    library = "wandb"

    def __init__(
        self,
        *,
        project: str = "up",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        folder: str | None = None,
    ) -> None:
        self.project, self.name, self.entity, self.group = project, name, entity, group
        self.tags, self.notes, self.mode, self.folder = tags, notes, mode, folder

    def start(self, run: TrackedRun) -> str:
        import wandb

        folder = Path(self.folder or run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run.name,
            group=self.group,
            tags=self.tags,
            notes=self.notes,
            mode=self.mode,
            dir=str(folder),
            id=run.run_id or uuid.uuid4().hex[:8],
            resume="allow",  # by the id; without a network each start is a part of the same line
            config={**run.config, "run_folder": run.folder},
            allow_val_change=True,
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)  # of an explicit step: smaller ones would be refused

    def best(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, state: End) -> None:
        if state == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "done" else 1)
