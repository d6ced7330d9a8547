"""A data set in class folders without a fault, and its twin with one of each kind planted."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"train": {"cat": 40, "dog": 36, "fox": 30}, "val": {"cat": 8, "dog": 8, "fox": 8}}


def scene(number: int, width: int = 60, height: int = 48) -> Image.Image:
    """A smooth image of coloured blobs with some noise, which only its number decides."""
    draw = np.random.default_rng(number)
    blobs = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(blobs, dtype=np.int16) + draw.integers(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def clean(folder: Path) -> Path:
    """Write ``SIZES``: JPEG and PNG, wide and tall; returns ``folder``."""
    number = 0
    for split, classes in SIZES.items():
        for name, images in classes.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(images):
                number += 1
                sides = (60, 48) if index % 3 else (48, 60)
                path = folder / split / name / f"{index}.{'jpg' if index % 2 else 'png'}"
                scene(number, *sides).save(path, quality=90)
    return folder


def with_faults(folder: Path) -> dict[str, list[str]]:
    """Plant faults into a ``clean`` folder; returns for each kind of finding the names of files that it must name."""
    train, val = folder / "train", folder / "val"
    encoded = io.BytesIO()
    scene(1000).save(encoded, "JPEG", quality=90)
    (train / "cat" / "void.jpg").write_bytes(b"")
    (train / "cat" / "cut.jpg").write_bytes(encoded.getvalue()[: len(encoded.getvalue()) // 2])
    (train / "dog" / "page.jpg").write_text("<!DOCTYPE html><html>not found</html>")
    scene(1001).save(train / "dog" / "really_png.jpg", "PNG")
    scene(1002).save(train / "dog" / "photo.bak", "JPEG")
    shutil.copy(train / "cat" / "1.jpg", val / "cat" / "leaked.jpg")
    with Image.open(train / "dog" / "3.jpg") as opened:
        opened.resize((120, 96), Image.Resampling.BICUBIC).save(val / "dog" / "larger.png")
    shutil.copy(train / "fox" / "5.jpg", train / "fox" / "copy.jpg")
    with Image.open(train / "fox" / "7.jpg") as opened:
        opened.save(train / "fox" / "again.jpg", quality=40)
    shutil.copy(train / "fox" / "9.jpg", train / "dog" / "fox.jpg")
    scene(1003).save(train / "cat" / "3.JPG")
    scene(1004, 2400, 1920).save(train / "fox" / "huge.jpg", quality=5)
    scene(1005, 600, 12).save(train / "fox" / "strip.png")
    scene(1006).convert("CMYK").save(train / "fox" / "print.jpg")
    Image.fromarray(np.zeros((48, 60, 3), np.uint8)).save(train / "fox" / "black.png")
    scene(1007, 120, 96).save(train / "dog" / "raw.bmp")
    for label, (name, split) in enumerate({"Cat": train, "owl": train, "elk": val}.items()):
        (split / name).mkdir()
        scene(2000 + label).save(split / name / "one.png")
    return {
        "empty": ["void.jpg"],
        "truncated": ["cut.jpg"],
        "unreadable": ["page.jpg"],
        "leak_identical": ["1.jpg", "leaked.jpg"],
        "leak_similar": ["3.jpg", "larger.png"],
        "two_labels": ["9.jpg", "fox.jpg"],
        "identical": ["5.jpg", "copy.jpg"],
        "similar": ["7.jpg", "again.jpg"],
        "similar_names": ["3.jpg", "3.JPG"],
        "wrong_suffix": ["really_png.jpg"],
        "not_read": ["photo.bak"],
        "unknown_class": ["elk"],
        "missing_class": ["owl"],
        "few_images": ["owl"],
        "imbalance": ["cat"],
        "size": ["huge.jpg"],
        "shape": ["strip.png"],
        "mode": ["print.jpg"],
    }
