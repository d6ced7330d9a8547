"""What distillation is worth: the student of configs/cls/kd_quickstart.yaml alone, with its teacher, and with the teacher alone.

    python tools/kd_gain.py [--seeds 5] [--least 1.0] [--most 1.0] [--opts KEY=VALUE …]

All learn from the same 20 images a class in the same order, with the same schedule; the last one has no labels
(``meta_type: unlabelled``, ``mimic.task_loss: False``). The metric is the top-1 after the last epoch on the 359 validation
images. Prepares digits and teacher where they are missing. Ends with 1 when the gain of the means is below ``--least`` points, or
what the labels are worth beside the teacher above ``--most``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path

from kd_quickstart import CONFIG, prepare

from up.__main__ import main as up

_TRAIN = "dataset.train.dataset.kwargs"
ARMS = {
    "alone": ["runtime.runner.type=base"],
    "with the teacher": [],
    "without labels": ["mimic.task_loss=false", f"{_TRAIN}.meta_type=unlabelled", f"{_TRAIN}.class_names=null"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--least", type=float, default=1.0, metavar="POINTS", help="the gain to reach")
    parser.add_argument("--most", type=float, default=1.0, metavar="POINTS", help="the loss without labels to stay within")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY=VALUE", help="overrides for all")
    arguments = parser.parse_args()
    prepare()
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(arguments.seeds):
        for arm, top1 in found.items():
            top1.append(trained(arguments.config, arm, seed, arguments.opts))
        print(f"seed {seed}: " + ", ".join(f"{arm} {top1[-1]:.2f} %" for arm, top1 in found.items()), flush=True)
    alone, taught, unlabelled = (Summary(values) for values in found.values())
    gain, loss = taught.mean - alone.mean, taught.mean - unlabelled.mean
    print(f"top-1 of the student, mean ± standard deviation over {arguments.seeds} seeds (lowest to highest):")
    for arm, summary in zip(ARMS, (alone, taught, unlabelled), strict=True):
        print(f"  {arm:16}  {summary}")
    print(f"  gain of the teacher {gain:+.2f} points (at least {arguments.least:g} expected)")
    print(f"  loss without labels {loss:+.2f} points (at most {arguments.most:g} expected)")
    sys.exit(0 if gain >= arguments.least and loss <= arguments.most else 1)


class Summary:
    """Mean and spread of a few numbers."""

    def __init__(self, values: list[float]) -> None:
        self.mean = statistics.mean(values)
        self.deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        self.low, self.high = min(values), max(values)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f} % ({self.low:.2f} to {self.high:.2f})"


def trained(config: str, arm: str, seed: int, overrides: list[str]) -> float:
    """Train an arm and return the top-1 in percent after the last epoch."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        own = [*ARMS[arm], f"runtime.random_seed={seed}", f"saver.save_dir={folder}/run"]
        if arm == "without labels":
            lines = Path("data/digits20/train.txt").read_text(encoding="utf-8").splitlines()
            (Path(folder) / "images.txt").write_text("".join(f"{line.rsplit(' ', 1)[0]}\n" for line in lines), encoding="utf-8")
            own.append(f"{_TRAIN}.meta_file={folder}/images.txt")
        code = up(["train", "--config", config, "--opts", *own, *overrides])
        if code:
            sys.exit(f"the training ended with {code}:\n{said.getvalue()}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(next(record["top1"] for record in map(json.loads, reversed(lines)) if record["phase"] == "eval"))


if __name__ == "__main__":
    main()
