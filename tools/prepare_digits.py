"""Write scikit-learn's handwritten digits (1,797 real images, UCI ML repository) as PNG files with meta files.

    python tools/prepare_digits.py [--out data/digits] [--per-class N]

makes OUT/images/*.png (32x32, grey), OUT/train.txt and OUT/val.txt ("path label" lines, stratified 80/20) and
OUT/classes.txt. ``--per-class N`` cuts the training list to N images a class. Running it again changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError:
    print("scikit-learn is not installed. Install the demo extra: pip install -e '.[demo]'", file=sys.stderr)
    sys.exit(2)

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32
VAL_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/digits"))
    parser.add_argument("--per-class", type=int, help="cut the training list to this many images a class")
    arguments = parser.parse_args()
    train, val = prepare(arguments.out, per_class=arguments.per_class)
    print(f"{arguments.out}: {train} training and {val} validation images of {len(CLASSES)} classes")


def prepare(out: Path, *, per_class: int | None = None) -> tuple[int, int]:
    """Write images and meta files below ``out``; returns the numbers of training and validation images."""
    digits = load_digits()
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = images / name_of(index, label)
        if not path.exists():
            grey = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
            grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    train, val = split(digits.target, per_class=per_class)
    for name, indices in (("train.txt", train), ("val.txt", val)):
        lines = [f"{name_of(index, digits.target[index])} {digits.target[index]}\n" for index in indices]
        (out / name).write_text("".join(lines), encoding="utf-8")
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    return len(train), len(val)


def name_of(index: int, label: int) -> str:
    """The file name of an image, the same at every run."""
    return f"{index:04d}_{CLASSES[label]}.png"


def split(labels: np.ndarray, *, per_class: int | None) -> tuple[list[int], list[int]]:
    """Indices of the training and validation images: of each class, a fifth chosen by a fixed seed is kept for validation."""
    draw = np.random.default_rng(0)
    train: list[int] = []
    val: list[int] = []
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        cut = round(VAL_SHARE * len(members))
        val.extend(members[:cut].tolist())
        train.extend(members[cut:][:per_class].tolist())
    return sorted(train), sorted(val)


if __name__ == "__main__":
    main()
