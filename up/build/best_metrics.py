"""The metrics of the best weights of a run, from the files of its folder."""

from __future__ import annotations

from pathlib import Path

from up.engine.checkpoint import read_sidecar
from up.files import BEST, averages_of
from up.json_text import with_nan
from up.tracking.log import read_metrics
from up.types import Record


def metrics_of_best(folder: Path, checkpoint: Path) -> Record | None:
    """Return the metrics of ``checkpoint``, the best of the run in ``folder``; None if they are not recorded.

    Metrics of the moving average are also returned without ``ema_`` in their names. Empty for a run that was not evaluated.
    """
    averages = averages_of(folder)
    if checkpoint.name == averages.get("best") != BEST:
        recorded: Record | None = averages.get("best_metrics")
        return None if recorded is None else with_nan(recorded)
    evaluated = [line for line in read_metrics(folder) if line["phase"] == "eval"]
    if not evaluated:
        return {}
    sidecar = read_sidecar(checkpoint)
    found = next((line for line in evaluated if sidecar is not None and line["step"] == sidecar.step), evaluated[-1])
    metrics = {name: value for name, value in found.items() if name not in ("phase", "step", "epoch")}
    return {**metrics, **{name.removeprefix("ema_"): value for name, value in metrics.items() if name.startswith("ema_")}}
