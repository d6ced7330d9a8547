"""What ``make quickstart`` runs: real digits, a trained, evaluated and exported model, predictions, and what to try next."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "configs/cls/quickstart.yaml"
DIGITS = Path("data/digits")
RUN = Path("runs/quickstart")
PACKAGE = RUN / "digits_1.0.0.tar"
SHOWN = 5


def main() -> None:
    run("1/6  real images: scikit-learn's handwritten digits", "tools/prepare_digits.py", "--out", str(DIGITS))
    begun = time.perf_counter()
    run("2/6  train (stop it with Ctrl-C and run it again: it goes on)", "-m", "up", "train", "--config", CONFIG)
    minutes = (time.perf_counter() - begun) / 60
    run("3/6  evaluate the best checkpoint", "-m", "up", "eval", "--config", CONFIG)
    run("4/6  export it as a package, proved against torch", "-m", "up", "to_kestrel", "--config", CONFIG)
    validation = ["--meta", str(DIGITS / "val.txt"), "--image-dir", str(DIGITS / "images")]
    run("5/6  verify the package, and measure it again", "-m", "up", "verify", str(PACKAGE), *validation)
    images = [str(DIGITS / "images" / line.rsplit(" ", 1)[0]) for line in (DIGITS / "val.txt").read_text().splitlines()[:SHOWN]]
    words = ["--bundle", str(PACKAGE), "--topk", "3"]
    run(f"6/6  predict {SHOWN} images with it, without torch", "-m", "up", "predict", *words, *images)
    metrics = json.loads((RUN / "results" / "metrics.json").read_text(encoding="utf-8"))
    print(
        f"""
top-1 on the 359 validation images: {metrics["top1"]:.2f} %   (trained in {minutes:.1f} minutes)

{RUN}/train.log, metrics.jsonl, tensorboard/, config.yaml, status.json     what happened
{RUN}/ckpt_best.pth, ckpt_latest.pth                                       the weights
{RUN}/results/                                                             accuracy per class, confusion, predictions
{PACKAGE}                                                     the package, see docs/deploy.md

try next
  .venv/bin/python -m up train --config {CONFIG} --opts trainer.max_epoch=5 saver.save_dir=runs/short
  .venv/bin/python -m up to_kestrel --config {CONFIG} --quantize int8 --save-to runs/int8
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
