"""What ``make finetune-quickstart`` runs: fine-tuning against training from scratch, with 10 images a class, over several seeds.

    python tools/finetune_quickstart.py [--seeds 5]

A small ResNet is pretrained on the digits 0 to 4. Each seed draws 10 images of each of the digits 5 to 9, and trains on them in
five ways from configs/cls/finetune_quickstart.yaml. The table has the mean top-1 on all validation images of these digits, and
the 95 % interval of the mean (Student's t); a difference is within noise where the interval of the paired differences includes 0.
Ends with 1 when a bound does not hold: fine-tuning is 3 points above training from scratch, LP-FT at most half a
point below fine-tuning, the soup not below the checkpoint of the last epoch.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import numpy as np
from prepare_digits import CLASSES, prepare
from quickstart import run

from up.api import evaluate, train
from up.intervals import half_width

CONFIG = "configs/cls/finetune_quickstart.yaml"
DATA, RUNS = Path("data/digits_finetune"), Path("runs/finetune_quickstart")
PRETRAINED = RUNS / "pretrained" / "ckpt_best.pth"
PER_CLASS = 10
ROWS = {  # overrides of the configuration
    "scratch": ["saver.pretrain_model=null"],
    "linear probe": ["finetune.freeze=backbone", "trainer.optimizer.kwargs.lr=0.2"],  # a head alone needs a larger lr; 1 is as good
    "fine-tuning": [],
    "LP-FT": ["finetune.probe={epochs: 5, lr: 0.01}"],
}
SOUP = "fine-tuning, soup of the best 3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1")
    seeds = range(parser.parse_args().seeds)
    print("\n== 1/3  real images: the digits 0 to 4 for pretraining, 10 images of each of 5 to 9", flush=True)
    prepare(Path("data/digits"))
    for seed in seeds:
        write_lists(seed)
    if not PRETRAINED.exists():
        lists = [f"dataset.{source}.dataset.kwargs.{key}" for source in ("train", "test") for key in ("meta_file", "class_names")]
        files = ["pretrain.txt", "pretrain_classes.txt", "pretrain_val.txt", "pretrain_classes.txt"]
        overrides = [f"{key}={DATA / file}" for key, file in zip(lists, files, strict=True)]
        own = [f"saver.save_dir={PRETRAINED.parent}", "net.1.kwargs.num_classes=5", "trainer.max_epoch=12"]
        run("2/3  pretrain on 0 to 4", "-m", "up", "train", "--config", "configs/cls/quickstart.yaml", "--opts", *overrides, *own)
    print("\n== 3/3  train on 5 to 9 in five ways", flush=True)
    found: dict[str, list[float]] = {name: [] for name in (*ROWS, SOUP)}
    for seed in seeds:
        for name, value in trained(seed).items():
            found[name].append(value)
        print(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.2f} %" for name, values in found.items()), flush=True)
    print(table(found))
    failed = [text for text, holds in bounds(found).items() if not holds]
    print(*(f"not reached: {text}" for text in failed), sep="\n")
    print("try next: docs/finetune.md, up finetune --train photos/")
    sys.exit(1 if failed else 0)


def write_lists(seed: int) -> None:
    """Write the lists of the digits 0 to 4, and of 5 to 9 with labels from 0: 10 images a class that ``seed`` draws."""
    DATA.mkdir(parents=True, exist_ok=True)
    wanted = {name: Path(f"data/digits/{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("train", "val")}
    rows = {name: [(line.split()[0], int(line.split()[1])) for line in lines] for name, lines in wanted.items()}
    draw = np.random.default_rng(seed)
    few = [row for label in range(5, 10) for row in _drawn(rows["train"], label, draw)]
    lists = {
        "pretrain.txt": [row for row in rows["train"] if row[1] < 5],
        "pretrain_val.txt": [row for row in rows["val"] if row[1] < 5],
        f"train{seed}.txt": [(name, label - 5) for name, label in few],
        "val.txt": [(name, label - 5) for name, label in rows["val"] if label >= 5],
    }
    for file, listed in lists.items():
        (DATA / file).write_text("".join(f"{name} {label}\n" for name, label in listed), encoding="utf-8")
    for file, names in (("pretrain_classes.txt", CLASSES[:5]), ("classes.txt", CLASSES[5:])):
        (DATA / file).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _drawn(rows: list[tuple[str, int]], label: int, draw: np.random.Generator) -> list[tuple[str, int]]:
    members = [row for row in rows if row[1] == label]
    return [members[index] for index in sorted(draw.permutation(len(members))[:PER_CLASS].tolist())]


def trained(seed: int) -> dict[str, float]:
    """Top-1 in percent of each way after the last epoch, and of the soup of fine-tuning."""
    found = {}
    for name, overrides in ROWS.items():
        folder = RUNS / f"{name.replace(' ', '_')}{seed}"
        own = [
            f"runtime.random_seed={seed}",
            f"dataset.train.dataset.kwargs.meta_file={DATA}/train{seed}.txt",
            f"saver.save_dir={folder}",
        ]
        run_of = train(CONFIG, [*own, *overrides], progress=False)
        found[name] = next(line["top1"] for line in reversed(run_of.history) if line["phase"] == "eval")
        if name == "fine-tuning":
            found[SOUP] = evaluate(folder, folder / "ckpt_soup.pth", out=folder / "soup")["top1"]
    return found


def interval(values: list[float]) -> float:
    """Half of the 95 % interval of the mean."""
    half = half_width(values)
    return math.nan if half is None else half


def table(found: dict[str, list[float]]) -> str:
    """Format the table; differences from fine-tuning are paired by the seed."""
    title = f"top-1 on 5 to 9, mean ± 95 % interval over {len(found[SOUP])} seeds, and the difference from fine-tuning:"
    lines = [title]
    for name, values in found.items():
        differences = [value - other for value, other in zip(values, found["fine-tuning"], strict=True)]
        mean, half = statistics.mean(differences), interval(differences)
        noise = " (within noise)" if name != "fine-tuning" and not abs(mean) > half else ""
        against = "" if name == "fine-tuning" else f"{mean:+6.2f} ± {half:.2f}{noise}"
        lines.append(f"  {name:<33}{statistics.mean(values):6.2f} ± {interval(values):.2f} %   {against}".rstrip())
    return "\n".join(["", *lines, ""])


def bounds(found: dict[str, list[float]]) -> dict[str, bool]:
    """Return the bounds, and whether each holds."""
    means = {name: statistics.mean(values) for name, values in found.items()}
    return {
        "fine-tuning is at least 3 points above training from scratch": means["fine-tuning"] >= means["scratch"] + 3,
        "LP-FT is at most half a point below fine-tuning": means["LP-FT"] >= means["fine-tuning"] - 0.5,
        "the soup is at least as good as the last epoch": means[SOUP] >= means["fine-tuning"],
    }


if __name__ == "__main__":
    main()
