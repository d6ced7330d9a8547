"""MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from itertools import islice

from up.tracking.trackers.tracker import End, TrackedRun, Tracker, flat
from up.types import Kwargs

_LONGEST = 500  # characters of a parameter that every store takes
_MOST = 100  # parameters of a request
_STATUS: Mapping[End, str] = {"done": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """MLflow: metrics, the configuration as parameters, the run folder as a tag.

    ``project`` is the experiment, ``name`` the run, the run folder's name when left out. ``uri``: of a server, a database
    (``sqlite:///mlflow.db``) or a folder (``mlruns``); the variable MLFLOW_TRACKING_URI, else MLflow's own default, when left out.
    """

    library = "mlflow"

    def __init__(
        self, *, project: str = "up", name: str | None = None, tags: dict[str, str] | None = None, uri: str | None = None
    ) -> None:
        self.project, self.name, self.tags, self.uri = project, name, tags, uri

    def start(self, run: TrackedRun) -> str:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # or MLflow 3 refuses the folders of its earlier versions
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        if run.run_id is not None:
            self._id = run.run_id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        experiment = self._client.get_experiment_by_name(self.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.project)
        tags = {**(self.tags or {}), "run_folder": run.folder}
        self._id = str(self._client.create_run(number, run_name=self.name or run.name, tags=tags).info.run_id)
        self._log_parameters(run.config)
        return self._id

    def _log_parameters(self, config: Kwargs) -> None:
        from mlflow.entities import Param

        left = (Param(named(key), str(value)[:_LONGEST]) for key, value in flat(config))
        while some := list(islice(left, _MOST)):
            self._client.log_batch(self._id, params=some)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(named(name), value, now, step) for name, value in values.items()])

    def best(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.set_tag(self._id, named(name), value)  # a tag can be changed; a metric would be one more point

    def finish(self, state: End) -> None:
        self._client.set_terminated(self._id, _STATUS[state])


def named(key: str) -> str:
    """Return a name that MLflow takes: other characters than letters, digits, ``/_-.:`` and spaces become ``_``."""
    return re.sub(r"[^/\w.\- :]", "_", key)
