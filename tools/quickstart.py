"""What ``make quickstart`` runs: real digits, a trained and evaluated model, predictions, and what to try next."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "configs/cls/quickstart.yaml"
DIGITS = Path("data/digits")
RUN = Path("runs/quickstart")
SHOWN = 5


def main() -> None:
    run("1/4  real images: scikit-learn's handwritten digits", "tools/prepare_digits.py", "--out", str(DIGITS))
    begun = time.perf_counter()
    run("2/4  train (stop it with Ctrl-C and run it again: it goes on)", "-m", "up", "train", "--config", CONFIG)
    minutes = (time.perf_counter() - begun) / 60
    run("3/4  evaluate the best checkpoint", "-m", "up", "eval", "--config", CONFIG)
    images = [str(DIGITS / "images" / line.rsplit(" ", 1)[0]) for line in (DIGITS / "val.txt").read_text().splitlines()[:SHOWN]]
    run(f"4/4  predict {SHOWN} images", "-m", "up", "predict", "--config", CONFIG, "--topk", "3", *images)
    metrics = json.loads((RUN / "results" / "metrics.json").read_text(encoding="utf-8"))
    print(
        f"""
top-1 on the 359 validation images: {metrics["top1"]:.2f} %   (trained in {minutes:.1f} minutes)

{RUN}/train.log, metrics.jsonl, tensorboard/, config.yaml, status.json     what happened
{RUN}/ckpt_best.pth, ckpt_latest.pth                                       the weights
{RUN}/results/                                                             accuracy per class, confusion, predictions

try next
  .venv/bin/python -m up train --config {CONFIG} --opts trainer.max_epoch=5 saver.save_dir=runs/short
  .venv/bin/python -m up check --config configs/cls/res50_strikes.yaml --no-files
  .venv/bin/python -m up show components backbone
  your own images: put them into folders, one a class, and see docs/migrating.md and docs/config.md (meta_type: image_folder)"""
    )


def run(title: str, *words: str) -> None:
    """Run one step and end where it fails, with its exit code."""
    print(f"\n== {title}\n$ python {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
