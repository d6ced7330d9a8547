"""What ``make kd-quickstart`` runs: a teacher that has seen all digits, and a small student that has seen few, with its help.

    python tools/kd_quickstart.py [--prepare]

``--prepare`` ends when the digits and the teacher are there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prepare_digits import prepare as prepare_digits
from quickstart import run

CONFIG = "configs/cls/kd_quickstart.yaml"
TEACHER_CONFIG = "configs/cls/quickstart.yaml"
TEACHER = Path("runs/quickstart/ckpt_best.pth")
PER_CLASS = 20


def main() -> None:
    prepare()
    if "--prepare" in sys.argv:
        return
    alone = ["runtime.runner.type=base", "saver.save_dir=runs/kd_quickstart_alone"]
    run("3/4  the student by itself", "-m", "up", "train", "--config", CONFIG, "--opts", *alone)
    run("4/4  the student with the teacher", "-m", "up", "train", "--config", CONFIG)
    print(
        f"""
top-1 on the 359 validation images
  the teacher, which has seen 1,438 images            {top1(TEACHER.parent, "ema_top1"):.2f} %
  the student, from {10 * PER_CLASS} images, by itself             {top1(Path("runs/kd_quickstart_alone")):.2f} %
  the student, from the same images, with the teacher {top1(Path("runs/kd_quickstart")):.2f} %

runs/kd_quickstart/train.log      task_loss and mimic_job0_loss apart, the teacher's own score before the first update

try next
  python tools/kd_gain.py                                     the same over five seeds
  python -m up check --config configs/cls/kd_multi_teacher.yaml --no-files
  docs/distill.md                                             which loss when, which layers, how to read the log"""
    )


def prepare() -> None:
    """Digits, all of them and 20 a class, and the teacher."""
    if not Path("data/digits20/train.txt").exists():
        print("\n== 1/4  real images: scikit-learn's handwritten digits, all of them and 20 a class", flush=True)
        for out, per_class in (("data/digits", None), ("data/digits20", PER_CLASS)):
            train, val = prepare_digits(Path(out), per_class=per_class)
            print(f"{out}: {train} training and {val} validation images")
    if not TEACHER.exists():
        run("2/4  the teacher: what make quickstart trains", "-m", "up", "train", "--config", TEACHER_CONFIG)


def top1(folder: Path, name: str = "top1") -> float:
    """The top-1 of a run's last evaluation, in percent."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(next(record[name] for record in map(json.loads, reversed(lines)) if record["phase"] == "eval"))


if __name__ == "__main__":
    main()
