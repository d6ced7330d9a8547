"""What ``make quickstart`` runs: real digits, a trained, evaluated and exported model, predictions, and what to try next."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "configs/cls/quickstart.yaml"
DIGITS = Path("data/digits")
RUN = Path("runs/quickstart")
Row = dict[str, str]  # of predictions.csv
PACKAGE = RUN / "digits_1.0.0.tar"
SHOWN = 4  # right predictions; a wrong one is added where there is one


def main() -> None:
    run("1/6  real images: scikit-learn's handwritten digits", "tools/prepare_digits.py", "--out", str(DIGITS))
    begun = time.perf_counter()
    run("2/6  train (stop it with Ctrl-C and run it again: it resumes)", "-m", "up", "train", "--config", CONFIG)
    minutes = (time.perf_counter() - begun) / 60
    run("3/6  evaluate the best checkpoint", "-m", "up", "eval", "--config", CONFIG)
    run("4/6  export it as a package, compared with torch", "-m", "up", "to_kestrel", "--config", CONFIG)
    validation = ["--meta", str(DIGITS / "val.txt"), "--image-dir", str(DIGITS / "images")]
    run("5/6  verify the package, and measure it again", "-m", "up", "verify", str(PACKAGE), *validation)
    right, wrong = showcase(RUN / "results" / "predictions.csv")
    images = [str(DIGITS / "images" / row["filename"]) for row in (*right, *wrong)]
    words = ["--bundle", str(PACKAGE), "--topk", "3"]
    run(f"6/6  predict {len(images)} validation images with it, without torch", "-m", "up", "predict", *words, *images)
    print(told(right, wrong))
    metrics = json.loads((RUN / "results" / "metrics.json").read_text(encoding="utf-8"))
    print(
        f"""
top-1 on the 359 validation images: {metrics["top1"]:.2f} %   (trained in {minutes:.1f} minutes)

{RUN}/train.log, metrics.jsonl, tensorboard/, config.yaml, status.json     what happened
{RUN}/ckpt_best.pth, ckpt_latest.pth                                       the weights
{RUN}/results/                                                             accuracy per class, confusion, predictions
{PACKAGE}                                                     the package, see docs/deploy.md

try next (after: source .venv/bin/activate)
  python -m up report {RUN}      a page to open: curves, classes, worst mistakes
  python -m up train --config {CONFIG} --opts trainer.max_epoch=5 saver.save_dir=runs/short
  python -m up to_kestrel --config {CONFIG} --quantize int8 --save-to runs/int8
  python -m up check --config configs/cls/res50_strikes.yaml --no-files
  python -m up show components backbone
  python -m up train photos/      your own photos: one folder per class, see README.md"""
    )


def showcase(predictions: Path, shown: int = SHOWN) -> tuple[list[Row], list[Row]]:
    """The surest right predictions, one a class, and the surest wrong one, if there is one, of an evaluation's predictions.csv."""
    with predictions.open(encoding="utf-8", newline="") as file:
        surest_first = sorted(csv.DictReader(file), key=lambda row: -float(row["score1"]))
    right: dict[str, Row] = {}
    for row in surest_first:
        if row["prediction"] == row["label"]:
            right.setdefault(row["label"], row)
    return list(right.values())[:shown], [row for row in surest_first if row["prediction"] != row["label"]][:1]


def told(right: list[Row], wrong: list[Row]) -> str:
    """What the shown predictions are, in a sentence."""
    if not wrong:
        return f"the {len(right)} surest predictions, one a class; no validation image is predicted wrongly"
    (row,) = wrong
    miss = f"{row['filename']} is {row['label']!r}, predicted as {row['prediction']!r}"
    return f"the {len(right)} surest right predictions, one a class, and the surest wrong one, the last: {miss}"


def run(title: str, *words: str) -> None:
    """Run one step and end where it fails, with its exit code."""
    print(f"\n== {title}\n$ python {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
