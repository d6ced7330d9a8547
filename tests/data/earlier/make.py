"""Make the files of this folder anew: ``python tests/data/earlier/make.py``, in a checkout of the version that is to be kept."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
CLASSES = 3
STOPPED_AT = {"plain": 8, "student": 7}  # steps; an epoch has 3
KEPT = ("config.yaml", "status.json", "metrics.jsonl", "ckpt_latest.pth", "ckpt_latest.pth.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_images(folder / "images")
        recorded: dict[str, Any] = {}
        for run in STOPPED_AT:
            shutil.copy(HERE / f"{run}.yaml", folder)
            recorded[run] = train(run, folder)
            if run == "plain":
                shutil.copy(folder / "plain-whole" / "ckpt_best.pth", folder / "teacher.pth")
        recorded["packages"] = packages(folder)
        keep(folder, recorded)


def draw_images(folder: Path) -> None:
    """Three classes: mostly red, green or blue, with noise."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, number in (("train", 24), ("val", 6)):
        lines = []
        for index in range(number):
            pixels = 10 * draw.integers(0, 12, (16, 16, 3), dtype=np.uint8)
            pixels[..., index % CLASSES] += 100
            Image.fromarray(pixels).save(folder / f"{name}{index}.png")
            lines.append(f"{name}{index}.png {index % CLASSES}\n")
        (folder / f"{name}.txt").write_text("".join(lines))


def train(run: str, folder: Path) -> dict[str, Any]:
    """Train a configuration to its end and, in another folder, up to the step where it is stopped; evaluate the latter."""
    file, whole, step = f"{run}.yaml", f"{run}-whole", STOPPED_AT[run]
    up(folder, "train", file, "-o", f"saver.save_dir={whole}")
    up(folder, "train", file, fault=f"step={step},action=term", code=75)
    up(folder, "eval", file, "--ckpt", f"{run}/ckpt_latest.pth", "--out", "report")
    state = torch.load(folder / whole / "ckpt_latest.pth", weights_only=True)
    torch.save({part: state[part] for part in ("model", "ema", "runner")}, folder / f"{run}-end.pth")
    return {
        "step": step,
        "steps": state["step"],
        "metrics": json.loads((folder / "report" / "metrics.json").read_text()),
        "log": [json.loads(line) for line in (folder / whole / "metrics.jsonl").read_text().splitlines()],
    }


def packages(folder: Path) -> dict[str, Any]:
    """Export what the whole run ended with, in 32-bit floats and in 8-bit integers; and the scores that they give."""
    calibration = ",".join(6 * ["images/train.txt"])  # 144 images, by repetition
    int8 = ["--quantize", "int8", "--max-drop", "100", "--min-speedup", "0", "-o"]
    int8.append(f"dataset.train.dataset.kwargs.meta_file=[{calibration}]")
    recorded = {}
    for name, words in (("float32", []), ("int8", int8)):
        up(folder, "to_kestrel", "plain.yaml", "--ckpt", "teacher.pth", "--save-to", name, *words)
        (package,) = (folder / name).glob("*.tar")
        package.rename(folder / f"{name}.tar")
        said = up(folder, "predict", "--bundle", f"{name}.tar", "images/val*.png", "--topk", "3", "--format", "jsonl")
        recorded[name] = [json.loads(line) for line in said.splitlines()]
    return recorded


def keep(folder: Path, recorded: dict[str, Any]) -> None:
    shutil.rmtree(HERE / "images", ignore_errors=True)
    shutil.copytree(folder / "images", HERE / "images")
    for run in STOPPED_AT:
        shutil.rmtree(HERE / run, ignore_errors=True)
        for name in KEPT:
            copy(folder / run / name, HERE / run / name)
    for name in ("teacher.pth", "student-end.pth", "float32.tar", "int8.tar"):
        copy(folder / name, HERE / name)
    (HERE / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")


def copy(source: Path, target: Path) -> None:
    """Copy a file, compressed unless it is text."""
    target.parent.mkdir(exist_ok=True)
    if source.suffix in (".pth", ".tar"):
        target.with_name(f"{target.name}.gz").write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))
    else:
        shutil.copyfile(source, target)


def up(folder: Path, *words: str, fault: str = "", code: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1", "UP_FAULT": fault}
    done = subprocess.run(
        [sys.executable, "-m", "up", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != code:
        raise SystemExit(f"up {' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
