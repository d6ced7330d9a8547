"""A configuration of a few images, for tests of what is built from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness.tiny import CLASSES, SIDE, tiny_config
from up.types import Record


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    draw = np.random.default_rng(0)
    for name, number in (("train", 18), ("val", 6)):
        files = [f"{name}{index}.png" for index in range(number)]
        for file in files:
            Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / file)
        (folder / f"{name}.txt").write_text("".join(f"{file} {index % len(CLASSES)}\n" for index, file in enumerate(files)))
    return folder


@pytest.fixture
def record(few_images: Path, tmp_path: Path) -> Record:
    """The configuration as a dict, for a test to change."""
    return tiny_config(few_images, tmp_path / "run")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Where ``load_record`` writes the configuration."""
    return tmp_path / "config.yaml"
