"""Parts of the benchmark's own recipes: a backbone without weights, and a hook that notes the first step."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor, nn

from up.engine.hooks import Hook, StepReport
from up.types import Record

TABLES = {"backbone": {"bench_flat": f"{__name__}:Flat"}, "hook": {"bench_first_step": f"{__name__}:FirstStep"}}


class Flat(nn.Module):
    """A backbone that flattens the images (B, 3, ``size``, ``size``), so that the head is the whole network."""

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.out_planes = [3 * size * size]

    def forward(self, record: Record) -> dict[str, list[Tensor]]:
        """Flatten ``record["image"]``."""
        return {"features": [record["image"].flatten(1)]}


class FirstStep(Hook):
    """Writes the time of the first step, in seconds since 1970, to ``file``."""

    def __init__(self, *, file: str) -> None:
        self._file = Path(file)

    def on_step(self, report: StepReport) -> None:
        """Write the time, once."""
        if not self._file.exists():
            self._file.write_text(repr(time.time()), encoding="utf-8")
