"""The segmentation task of docs/add_a_task.md, as pip would leave it behind, with images of squares to learn from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_task.md"


def files_in(page: Path) -> Iterator[tuple[str, str]]:
    """Name and content of the files that a page holds: blocks of code that begin with ``# name.ending``."""
    yield from re.findall(r"```\w+\n# ([\w.]+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def install(folder: Path, *, train: int = 20, test: int = 7) -> None:
    """Write the files of the page, the entry point that its pyproject.toml declares, and images with masks."""
    for name, content in files_in(PAGE):
        (folder / name).write_text(content, encoding="utf-8")
    project = (folder / "pyproject.toml").read_text()
    ((name, target),) = re.findall(r'\[project.entry-points."up.tasks"\]\n(\w+) = "(\S+)"', project)
    declare(folder, name, target)
    squares(folder / "train", train)
    squares(folder / "test", test, sides=(32, 48, 40))


def declare(folder: Path, name: str, target: str) -> None:
    """Declare the task ``name`` as a distribution does that is installed in ``folder``."""
    installed = folder / f"{name}_task-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-task\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text(f"[up.tasks]\n{name} = {target}\n")


def squares(folder: Path, number: int, sides: Sequence[int] = (32,)) -> None:
    """Noise with one bright square each; its mask, and rows of pixels without a label. Their number and the size differ."""
    draw = np.random.default_rng(len(folder.name))
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(number):
        size = int(draw.integers(6, 20))
        left, top = draw.integers(0, 32 - size, 2)
        high, wide = sides[index % len(sides)], sides[(index + 1) % len(sides)]
        pixels, mask = draw.integers(0, 100, (high, wide, 3), dtype=np.uint8), np.zeros((high, wide), dtype=np.uint8)
        pixels[top : top + size, left : left + size] += 120
        mask[top : top + size, left : left + size] = 1
        mask[: index % 5] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{index:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index:02}.png")
