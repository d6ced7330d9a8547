"""Memory of a run over 50,000 images: it does not grow, in the process that trains and in its workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.harness.tiny import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
IMAGES, EPOCHS = 2_500, 20
GROWTH = 1.05  # of the resident memory from a fifth of the run to its end


def resident(process: int) -> int:
    """Private memory of a process and its children, in bytes: shared pages count once, with the parent."""
    total = 0
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for each in [str(process), *children]:
        lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))
    return total


def test_memory_is_flat_over_fifty_thousand_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        folder = tmp_path / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    lines = [f"class{number % 3}/{number}.jpg {number % 3}\n" for number in range(IMAGES)]
    (tmp_path / "images" / "train.txt").write_text("".join(lines))
    (tmp_path / "images" / "val.txt").write_text("".join(lines[:50]))
    config = tiny_config(tmp_path / "images", tmp_path / "run")
    config["trainer"] |= {"max_epoch": EPOCHS, "log_interval": 50}
    config["dataset"]["train"]["dataloader"]["kwargs"]["num_workers"] = 2
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 50
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    run = subprocess.Popen([sys.executable, "-m", "up", "train", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: list[tuple[int, int]] = []  # evaluations done, bytes
    while run.poll() is None:
        time.sleep(0.5)
        log = tmp_path / "run" / "metrics.jsonl"
        epochs = log.read_text().count('"phase": "eval"') if log.exists() else 0
        try:
            seen.append((epochs, resident(run.pid)))
        except OSError:  # it ended
            break
    assert run.wait() == 0
    early = [size for epoch, size in seen if EPOCHS // 5 <= epoch < EPOCHS // 5 + 4]
    late = [size for epoch, size in seen if EPOCHS - 4 <= epoch < EPOCHS]
    print(f"MB: early {np.median(early) / 1e6:.0f}, late {np.median(late) / 1e6:.0f}, {os.cpu_count()} processors")
    assert np.median(late) < GROWTH * np.median(early)
