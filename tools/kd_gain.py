"""What distillation is worth: the student of configs/cls/kd_quickstart.yaml with its teacher and without, over several seeds.

    python tools/kd_gain.py [--seeds 5] [--least 1.0] [--opts KEY=VALUE …]

Both learn from the same 20 images a class in the same order, with the same schedule; the metric is the top-1 after the last
epoch on the 359 validation images. Prepares digits and teacher where they are missing. Ends with 1 when the gain of the means
is below ``--least`` points.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--least", type=float, default=1.0, metavar="POINTS", help="the gain to reach")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY=VALUE", help="overrides for both")
    arguments = parser.parse_args()
    prepare()
    found: dict[str, list[float]] = {"base": [], "kd": []}
    for seed in range(arguments.seeds):
        for runner, top1 in found.items():
            top1.append(trained(arguments.config, runner, seed, arguments.opts))
        print(f"seed {seed}: without {found['base'][-1]:.2f} %, with the teacher {found['kd'][-1]:.2f} %", flush=True)
    without, with_teacher = (Summary.of(values) for values in found.values())
    gain = with_teacher.mean - without.mean
    print(f"top-1 of the student, mean ± standard deviation over {arguments.seeds} seeds (lowest to highest):")
    print(f"  without the teacher  {without}")
    print(f"  with the teacher     {with_teacher}")
    print(f"  gain                 {gain:+.2f} points (at least {arguments.least:g} expected)")
    sys.exit(0 if gain >= arguments.least else 1)


class Summary:
    """Mean and spread of a few numbers."""

    def __init__(self, values: list[float]) -> None:
        self.mean = statistics.mean(values)
        self.deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        self.low, self.high = min(values), max(values)

    @classmethod
    def of(cls, values: list[float]) -> Summary:
        return cls(values)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f} % ({self.low:.2f} to {self.high:.2f})"


def trained(config: str, runner: str, seed: int, overrides: list[str]) -> float:
    """Top-1 in percent after the last epoch."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        own = [f"runtime.runner.type={runner}", f"runtime.random_seed={seed}", f"saver.save_dir={folder}/run"]
        code = up(["train", "--config", config, "--opts", *own, *overrides])
        if code:
            sys.exit(f"the training ended with {code}:\n{said.getvalue()}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(next(record["top1"] for record in map(json.loads, reversed(lines)) if record["phase"] == "eval"))


if __name__ == "__main__":
    main()
