"""Rows of a whole run: `up train` with evaluation and checkpoints, next to a training with timm's functions."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target
from up.distributed.signals import ending_with_parent

_WORKERS = 2
_EPOCHS = 2
ROWS = [
    Row(
        "run.resnet18",
        "Two epochs of resnet18 at 64 x 64 with evaluation, 3,566 PNG files, batch 64, 2 workers: wall clock, start included",
        "s",
        [BenchCell(OURS, f"{__name__}:ours"), BenchCell("timm", f"{__name__}:of_timm", is_peer=True)],
        [Target(0.9, "at most", "timm")],
        "The convolutions on the CPUs, which both run through oneDNN; the difference is the start, the loaders and the evaluation.",
        [BenchCell("pngs", "up.bench.images:prepare_pngs")],
    )
]


def ours(settings: Settings) -> Reading:
    """Measure ``up train``: everything, from its start to the end of its process."""
    from up.bench.images import pngs
    from up.bench.recipes import Recipe

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            pngs(settings, "train"),
            "resnet10t" if settings.quick else "resnet18",
            settings.size(64, 32),
            settings.size(64, 4),
            settings.device,
            workers=_WORKERS,
            epochs=_EPOCHS,
            val=pngs(settings, "val"),
        )
        return _timed(["-m", "up", "train", str(recipe.write(Path(folder)))])


def of_timm(settings: Settings) -> Reading:
    """Measure ``up.bench.timm_loop``, which does what timm's train.py does, with timm's functions."""
    from up.bench.images import pngs

    train, val = pngs(settings, "train"), pngs(settings, "val")
    numbers = (settings.size(64, 32), settings.size(64, 4), _EPOCHS, _WORKERS)
    net = "resnet10t" if settings.quick else "resnet18"
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "up.bench.timm_loop", str(train), str(val), folder, net, settings.device, *map(str, numbers)]
        return _timed(words)


def _timed(words: list[str]) -> Reading:
    begun = time.perf_counter()
    arrange = ending_with_parent(signal.SIGKILL)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, preexec_fn=arrange)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return Reading(time.perf_counter() - begun)
