"""Rows of the start: the wall-clock time from the command to the first step, and of `--help`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target

_IMPORTS = "import torch, torchvision, timm, time; print(time.time())"
ROWS = [
    Row(
        "start.first-step",
        "From `up train` to the end of the first step: a small net, 32 images a step, no workers",
        "s",
        [BenchCell(OURS, f"{__name__}:first_step"), BenchCell("imports", f"{__name__}:imports", is_peer=True)],
        [Target(1.0, "at most", "imports", "difference")],
        "The imports of torch, torchvision and timm; beside them pydantic, reading the YAML file and the first step on two images.",
        [BenchCell("pngs", "up.bench.images:prepare_pngs")],
    ),
    Row(
        "start.help",
        "`up --help`",
        "s",
        [
            BenchCell(OURS, f"{__name__}:command", {"words": ["-m", "up", "--help"]}),
            BenchCell("python", f"{__name__}:command", {"words": ["-c", "pass"]}, is_peer=True),
        ],
        [Target(0.3, "at most")],
        "The start of Python: the help imports nothing else.",
    ),
]


def command(settings: Settings, words: list[str]) -> Reading:
    """Measure a Python process from its start to its end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return Reading(time.perf_counter() - begun)


def imports(settings: Settings) -> Reading:
    """Measure bare imports from the start of Python to their end: the end of the process is left out, as in ``first_step``."""
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True)
    return Reading(float(done.stdout) - begun)


def first_step(settings: Settings) -> Reading:
    """Measure ``up train`` from its start to the end of its first step."""
    from up.bench.images import pngs
    from up.bench.recipes import Recipe

    with tempfile.TemporaryDirectory() as written:
        folder, images = Path(written), pngs(settings, "train")
        noted = folder / "first_step"
        recipe = Recipe(images, "resnet10t", 32, settings.size(32, 4), settings.device)
        path = recipe.write(folder)
        hooks = f"+hooks={{type: bench_first_step, kwargs: {{file: {noted}}}}}"
        words = ["-m", "up", "train", str(path), "-o", "trainer.max_iter=1", hooks]
        begun = time.time()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return Reading(float(noted.read_text(encoding="utf-8")) - begun)
