"""ClearML."""

from __future__ import annotations

import os
from collections.abc import Mapping

from up.tracking.trackers.tracker import End, TrackedRun, Tracker


class ClearML(Tracker):
    """ClearML: scalars and the configuration of a task.

    ``name``: that of the run folder when left out. ``offline``: write sessions to ``folder`` (ClearML's cache when left out), and
    send nothing. A session is a zip file: ``clearml.Task.import_offline_session(FILE)`` sends the first, and, with
    ``previous_task_id``, adds those of later starts of the run, which carry the tag ``continues:ID``, to the same task.
    """

    library = "clearml"

    def __init__(
        self,
        *,
        project: str = "up",
        name: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
        folder: str | None = None,
    ) -> None:
        self.project, self.name, self.tags, self.offline, self.folder = project, name, tags, offline, folder

    def start(self, run: TrackedRun) -> str:
        if self.folder:
            os.environ["CLEARML_CACHE_DIR"] = os.path.abspath(self.folder)
        from clearml import Task

        Task.set_offline(self.offline)
        continued = [f"continues:{run.run_id}"] if run.run_id and self.offline else []
        self._task = Task.init(
            self.project,
            self.name or run.name,
            tags=[*(self.tags or []), *continued],
            reuse_last_task_id=(run.run_id or False) if not self.offline else False,
            continue_last_task=0 if run.run_id and not self.offline else False,  # 0: steps are not shifted
            auto_connect_frameworks=dict.fromkeys(("detect_repository", "matplotlib", "tensorboard", "pytorch", "scikit"), False),
            auto_connect_arg_parser=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )
        self._task.connect({**run.config, "run_folder": run.folder}, name="config")
        return run.run_id or str(self._task.id)  # that of the first session stands for all of them

    def log(self, step: int, values: Mapping[str, float]) -> None:
        logger = self._task.get_logger()
        for name, value in values.items():
            title, _, series = name.rpartition("/")
            logger.report_scalar(title or series, series, value, step)

    def best(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._task.get_logger().report_single_value(name, value)

    def finish(self, state: End) -> None:
        if not self.offline and state != "done":
            self._task.flush(wait_for_uploads=True)
            mark = self._task.mark_stopped if state == "preempted" else self._task.mark_failed
            mark(status_message=state)
        self._task.close()
