"""The files of a run, for reports: configuration, curves, status, record."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from up.build.experiment import load_experiment
from up.build.record import read_record
from up.engine.checkpoint import read_sidecar
from up.engine.folder import Status, read_status
from up.errors import UserError
from up.files import BEST
from up.run_files import CONFIG
from up.schema.show import values_with_origins
from up.tasks.experiment import Experiment
from up.text import yaml_text
from up.tracking.log import read_metrics
from up.types import Json, Record


@dataclass(frozen=True)
class RunFolder:
    """Files of a run: its configuration, the lines of ``metrics.jsonl``, ``status.json`` and ``run.json``."""

    folder: Path
    experiment: Experiment
    history: Sequence[Record]
    status: Status | None
    record: Mapping[str, Json]

    def points(self, phase: str, name: str) -> list[tuple[float, float]]:
        """List epoch and value of a number in ``metrics.jsonl``."""
        lines = (line for line in self.history if line["phase"] == phase and isinstance(line.get(name), int | float))
        return [(line["epoch"], line[name]) for line in lines if math.isfinite(line[name])]

    def best_epoch(self) -> float | None:
        """Return the epoch of ``ckpt_best.pth``; None without one."""
        sidecar = read_sidecar(self.folder / BEST)
        if sidecar is None:
            return None
        return next((line["epoch"] for line in self.history if line["step"] == sidecar.step), float(sidecar.epoch))

    def settings(self, *, without: Collection[str]) -> dict[str, str]:
        """Return the values of the configuration by dotted key, without some keys."""
        decoded = self.experiment.decoded
        return {key: value for key, value, _ in values_with_origins(decoded.config, decoded.origins) if key not in without}

    def of_training(self, name: str) -> list[float]:
        """List a number of the lines of training."""
        return [value for _, value in self.points("train", name)]


def open_run(named: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Open a run by its folder, or by the YAML file that it was trained from; the configuration is the run's own.

    Raises ``UserError`` for a folder that is not a run, and for a YAML file whose run does not exist.
    """
    folder = named if named.is_dir() else load_experiment(named, [*overrides]).folder
    if not (folder / CONFIG).is_file():
        what = f"{named}: its run folder {folder} contains no {CONFIG}" if folder != named else f"{folder}: contains no {CONFIG}"
        fix = "Train it first, or name another run with saver.save_dir." if folder != named else "Name it as saver.save_dir does."
        raise UserError(what, expected="the folder of a run, or the YAML file of one", fix=fix)
    record = read_record(folder)
    rest = [word for word in overrides if not word.startswith("saver.save_dir=")]
    experiment = load_experiment(folder / CONFIG, [f"saver.save_dir={yaml_text(folder)}", *rest])
    return RunFolder(folder, experiment, read_metrics(folder), read_status(folder), record)
