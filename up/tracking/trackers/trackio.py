"""Trackio."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from up.tracking.trackers.tracker import End, TrackedRun, Tracker


class Trackio(Tracker):
    """Trackio: scalars and configuration in a local database, or in a Space of Hugging Face.

    The run is called ``name`` (the run folder's when left out) and a few random letters, by which a resumed run finds it.
    ``folder``: of the database (Trackio's own when left out); ``space``: ``user/space``. Trackio has no states of runs: the end of
    the run is a row with ``state``.
    """

    library = "trackio"
    pip = "trackio"  # in no extra: it needs an older Pillow than constraints.txt pins

    def __init__(
        self, *, project: str = "up", name: str | None = None, folder: str | None = None, space: str | None = None
    ) -> None:
        self.project, self.name, self.folder, self.space = project, name, folder, space
        self._step = 0

    def start(self, run: TrackedRun) -> str:
        if self.folder:
            os.environ["TRACKIO_DIR"] = str(Path(self.folder).absolute())  # read when the library is imported
        import trackio

        name = run.run_id or f"{self.name or run.name}-{uuid.uuid4().hex[:6]}"
        config = {**run.config, "run_folder": run.folder}
        self._run = trackio.init(
            self.project,
            name=name,
            resume="allow",
            config=config,
            space_id=self.space,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._run.log(dict(values), step=step)

    def best(self, values: Mapping[str, float]) -> None:
        self._best = dict(values)

    def finish(self, state: End) -> None:
        self._run.log({"state": state, **getattr(self, "_best", {})}, step=self._step)
        self._run.finish()
