"""Evaluation of a run's checkpoint for its report: made now, or reused where it is known to be the same."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

import up
from up.build.trained import ready_to_evaluate
from up.data.records import Batch, Dataset, SampleKey
from up.engine.ema import NoEma
from up.engine.evaluate import Evaluator
from up.files import sha256_of, write_atomically
from up.intervals import Interval
from up.models.net import Net
from up.run_files import REPORT
from up.schema.show import effective_yaml
from up.tasks.experiment import Experiment
from up.tasks.report import Evidence
from up.types import Record

STATE = REPORT.replace("*", "npz")
_KEY, _ARRAY, _LIST = "key", "array_", "list_"


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluated checkpoint: metrics in the unit of the task, their intervals, and what made them."""

    checkpoint: Path
    net: Net
    evidence: Evidence[Dataset]
    metrics: dict[str, float]
    intervals: Mapping[str, Interval]
    images: int
    seconds: float | None
    """Time of the evaluation; None where it was reused."""
    source: str
    """How the numbers are known to be those of this checkpoint."""


def evaluated_run(experiment: Experiment, checkpoint: Path, folder: Path, *, keep: bool) -> RunEvaluation:
    """Evaluate ``checkpoint`` on ``dataset.test``, or reuse ``report.npz`` in ``folder`` if it is of the same evaluation.

    It is the same if the checkpoint (sha256), the configuration, the list of images, their sizes and times on disk, and the version
    of the program are. With ``keep`` the file is written. Raises ``UserError``.
    """
    task = experiment.task
    net, _, evaluation, dataset, _ = ready_to_evaluate(experiment, checkpoint)
    make = partial(task.report_evaluator, dataset)
    key = {
        "up": up.__version__,
        "checkpoint_sha256": sha256_of(checkpoint),
        "config_sha256": sha256(effective_yaml(experiment.config).encode()).hexdigest(),
        "images_sha256": images_hash(dataset),
    }
    evaluator, seconds = restored(make(), folder / STATE, key), None
    source = f"reused {STATE}: same checkpoint (sha256), configuration, images and version"
    if evaluator is None:
        begun = time.perf_counter()
        evaluator = replace(evaluation, make_evaluator=make)(net, NoEma()).served
        seconds, source = time.perf_counter() - begun, "evaluated for this page"
        if keep:
            save_state(folder / STATE, key, evaluator.state())

    def prepare(indices: Sequence[int]) -> Batch:
        return evaluation.stage(task.collate([dataset[SampleKey(0, index)] for index in indices]))

    return RunEvaluation(
        checkpoint=checkpoint,
        net=net,
        evidence=Evidence(evaluator, dataset, net, prepare),
        metrics=evaluator.compute(),
        intervals=task.intervals(evaluator),
        images=len(dataset),
        seconds=seconds,
        source=source,
    )


def images_hash(dataset: Dataset) -> str:
    """Hash the list of images and labels, and where their files are known their sizes and times of change."""
    found = sha256(dataset.fingerprint().encode())
    path_of: Callable[[int], str] | None = getattr(dataset, "path_of", None)
    if path_of is None:
        return found.hexdigest()
    for index in range(len(dataset)):
        try:
            status = os.stat(path_of(index))
        except (OSError, ValueError):  # inside of an archive, or gone
            continue
        found.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def save_state(path: Path, key: Mapping[str, str], state: object) -> None:
    """Write the state of an evaluator, if it is a mapping of arrays and lists of plain values; other states are not kept."""
    if not isinstance(state, dict):
        return
    arrays = {(_LIST if isinstance(value, list) else _ARRAY) + name: np.asarray(value) for name, value in state.items()}
    if any(array.dtype == object for array in arrays.values()):
        return
    arrays[_KEY] = np.asarray(json.dumps(key))
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def restored(evaluator: Evaluator, path: Path, key: Mapping[str, str]) -> Evaluator | None:
    """Return ``evaluator`` with the state in ``path``; None where that is missing, damaged or of another evaluation."""
    state: Record = {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # np.load leaves a damaged file open
            if json.loads(str(file[_KEY])) != key:
                return None
            for name in file:
                if name.startswith(_LIST):
                    state[name.removeprefix(_LIST)] = file[name].tolist()
                elif name != _KEY:
                    state[name.removeprefix(_ARRAY)] = file[name]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile):  # NotImplementedError is a RuntimeError
        return None
    evaluator.merge([state])
    return evaluator
