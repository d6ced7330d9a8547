"""What a run leaves behind to be read: train.log, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from up.distributed import is_main
from up.errors import place_in
from up.files import write_text
from up.runner.hooks import Hook, Outline, UpdateReport
from up.runner.meter import WindowMeter

LOGGER = logging.getLogger("up")
BAD_IMAGES = "bad_images.jsonl"


def log_to(folder: Path) -> None:
    """Send the lines of the ``up`` logger to ``train.log`` as well, with time; on the main rank only."""
    LOGGER.setLevel(logging.INFO)
    for handler in [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]:
        LOGGER.removeHandler(handler)
        handler.close()
    if is_main():
        file = logging.FileHandler(folder / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(file)


class MetricsFile(Hook):
    """One JSON object a line: means over each display interval, and every evaluation."""

    def __init__(self, *, freq: int) -> None:
        self.freq = freq
        self._window = WindowMeter()

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline = outline
        self._path = outline.folder / "metrics.jsonl"
        cut_after(self._path, step)

    def on_step(self, report: UpdateReport) -> None:
        self._window.add(report.scalars)
        if report.step % self.freq == 0 or report.step == self._outline.total_steps:
            self._append(report.step, {"lr": report.lr, **self._window.read()}, "train")

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(step, metrics, "eval")

    def _append(self, step: int, values: Mapping[str, float], phase: str) -> None:
        record = {"phase": phase, "step": step, "epoch": round(step / self._outline.updates_per_epoch, 4), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The updates since the last line."""
        return self._window.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self._window.load_state_dict(state)


def list_bad_images(folder: Path, step: int, found: Sequence[str]) -> None:
    """Append to ``bad_images.jsonl`` what was wrong with images (``meta.txt:21: images/x.jpg: truncated``), and log it."""
    with (folder / BAD_IMAGES).open("a", encoding="utf-8") as file:
        for what in found:
            LOGGER.warning("%s; another image takes its place", what)
            source, line = place_in(what)
            file.write(json.dumps({"step": step, "file": source, "line": line, "what": what}, ensure_ascii=False) + "\n")


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of updates that a killed run had reported but not saved: they will be made again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(path, "".join(line + "\n" for line in kept))


class TensorBoard(Hook):
    """Scalars for TensorBoard: ``train/…`` every ``freq`` updates, ``eval/…`` at every evaluation."""

    def __init__(self, *, freq: int = 20, logdir: str | None = None) -> None:
        self.freq = freq
        self.logdir = logdir
        self._window = WindowMeter()
        self._writer: SummaryWriter | None = None

    def on_start(self, outline: Outline, step: int) -> None:
        self._total = outline.total_steps
        self._writer = SummaryWriter(str(Path(self.logdir) if self.logdir else outline.folder / "tensorboard"), purge_step=step + 1)

    def on_step(self, report: UpdateReport) -> None:
        self._window.add(report.scalars)
        if self._writer and (report.step % self.freq == 0 or report.step == self._total):
            self._writer.add_scalar("train/lr", report.lr, report.step)
            for name, value in self._window.read().items():
                self._writer.add_scalar(f"train/{name}", value, report.step)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(f"eval/{name}", value, step)

    def on_end(self, step: int, reason: str) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, Any]:
        """The updates since the last line."""
        return self._window.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self._window.load_state_dict(state)
