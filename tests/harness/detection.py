"""The detection task of det_task.py, as pip would leave it behind, with images of rectangles and discs to learn from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.harness.plugin import declare

HERE = Path(__file__).parent
CODE, YAML = HERE / "det_task.py", HERE / "det.yaml"
COLOURS = ((230, 120, 40), (50, 110, 230))  # of rectangles, of discs


def install(folder: Path, *, train: int = 21, test: int = 9) -> None:
    """Write the task with its entry point, its configuration, and images with boxes."""
    for file in (CODE, YAML):
        shutil.copy(file, folder)
    declare(folder, "det", "det_task:DETECTION")
    shapes(folder / "train", train)
    shapes(folder / "test", test)


def shapes(folder: Path, number: int) -> None:
    """JPEGs of 40 to 90 pixels a side with 0 to 3 rectangles and discs each, and the file of JSON lines that names them."""
    draw = np.random.default_rng(len(folder.name))
    folder.mkdir(parents=True)
    with (folder / "boxes.jsonl").open("w") as meta:
        for index in range(number):
            width, height = (int(side) for side in draw.integers(40, 91, 2))
            image = Image.fromarray(draw.integers(0, 90, (height, width, 3), dtype=np.uint8))
            boxes = _drawn(ImageDraw.Draw(image), draw, (width, height), index % 4)
            image.save(folder / f"{index:02}.jpg", quality=95)
            meta.write(json.dumps({"filename": f"{index:02}.jpg", "boxes": boxes}) + "\n")


def _drawn(pen: ImageDraw.ImageDraw, draw: np.random.Generator, size: tuple[int, int], number: int) -> list[list[int]]:
    """Draw up to ``number`` shapes, of which none covers another: [left, top, right, bottom, label] of each."""
    boxes: list[list[int]] = []
    for _ in range(10 * number):
        if len(boxes) == number:
            break
        label, (width, height) = int(draw.integers(2)), (int(side) for side in draw.integers(14, 33, 2))
        height = width if label else height
        left, top = (int(draw.integers(0, side - extent + 1)) for side, extent in zip(size, (width, height), strict=True))
        box = [left, top, left + width, top + height]
        if any(box[0] < x1 and x0 < box[2] and box[1] < y1 and y0 < box[3] for x0, y0, x1, y1, _ in boxes):
            continue
        inner = (left, top, left + width - 1, top + height - 1)  # Pillow draws the last pixel, too
        (pen.ellipse if label else pen.rectangle)(inner, fill=COLOURS[label])
        boxes.append([*box, label])
    return boxes
