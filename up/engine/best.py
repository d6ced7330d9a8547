"""Hook ``auto_save_metric``: keep the best checkpoint by further metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from up.distributed.group import is_main
from up.engine.checkpoint import CheckpointFolder
from up.engine.hooks import Hook, Outline, StepReport
from up.engine.stopping import smaller_is_better
from up.errors import UserError
from up.files import BEST, write_json
from up.run_files import BEST_METRICS
from up.text import did_you_mean, some_of
from up.tracking.log import LOGGER
from up.types import StateDict


class AutoSaveMetric(Hook):
    """Keep the best value of every metric in ``best_metrics.json``, and for each of ``metric`` its checkpoint.

    ``metric``: a name from the log, such as ``top5`` or ``ema_top1``, or several; their checkpoints are ``ckpt_best_{metric}.pth``,
    whatever ``keep_last`` deletes. ``ckpt_best.pth``, by the evaluator's ``cmp_key``, is kept in any case. Smaller is better
    for a metric whose name ends in ``loss``.
    """

    on_every_rank = True  # all ranks must agree to save

    def __init__(self, *, metric: str | list[str] | None = None) -> None:
        self.names = [metric] if isinstance(metric, str) else list(metric or ())
        wrong = [name for name in self.names if not name or "/" in name]
        if wrong:
            raise UserError(got=wrong[0], expected="the name of a metric, such as top5", key="metric")
        self._best: dict[str, dict[str, float]] = {}
        self._unsaved: list[str] = []

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the last evaluation was the best by any of the metrics, and is not saved yet."""
        return bool(self._unsaved)

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline = outline
        self._unsaved = []
        if is_main():
            steps = {alias_of(name): int(self._best[name]["step"]) for name in self.names if name in self._best}
            self._checkpoints().renew_aliases(steps)

    def on_step(self, report: StepReport) -> None:
        self._unsaved = []

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        missing = [name for name in self.names if name not in metrics]
        if missing and is_main() and not self._best:  # once, at the first evaluation
            LOGGER.warning(
                "auto_save_metric: the evaluation gives no %s, only %s.%s",
                some_of(missing),
                some_of(metrics),
                did_you_mean(missing[0], metrics),
            )
        better = [name for name, value in metrics.items() if self._is_better(name, value)]
        self._best |= {name: {"value": metrics[name], "step": step} for name in better}
        self._unsaved = [name for name in better if name in self.names]
        if is_main():
            write_json(self._outline.folder / BEST_METRICS, self._best)

    def on_save(self, step: int, path: Path) -> None:
        for name in self._unsaved:
            self._checkpoints().mark_best(path, alias_of(name))

    def state_dict(self) -> StateDict:
        """Return the best values and their steps."""
        return {"best": self._best}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._best = {name: dict(found) for name, found in state["best"].items()}

    def _is_better(self, name: str, value: float) -> bool:
        before = self._best.get(name, {}).get("value")
        if not math.isfinite(value) or before is None:
            return math.isfinite(value)
        return value < before if smaller_is_better(name) else value > before

    def _checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self._outline.folder, keeping=None, config_sha256="")


def alias_of(metric: str) -> str:
    """Return the file name of the best checkpoint by ``metric``, such as ``ckpt_best_top5.pth``."""
    return BEST.replace(".pth", f"_{metric}.pth")
