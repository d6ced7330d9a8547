"""Images of some colours in class folders: what a newcomer has, in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def make_photos(folder: Path, counts: Mapping[str, int], side: int = 32, seed: int = 0) -> Path:
    """Write ``counts[name]`` images a class, random blocks of mostly one colour; returns ``folder``."""
    draw = np.random.default_rng(seed)
    for label, (name, number) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            blocks = draw.integers(0, 120, (6, 7, 3), dtype=np.uint8)  # large enough that no two images look the same
            blocks[..., label % 3] += 100
            Image.fromarray(blocks).resize((side + 8, side), Image.Resampling.NEAREST).save(folder / name / f"{index}.png")
    return folder
