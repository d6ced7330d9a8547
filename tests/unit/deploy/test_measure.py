"""Images on which `verify --meta` measures a package: prepared as its predictions are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.harness.facts import facts
from up.bundle.operations import Operation
from up.bundle.preprocess import Preprocessing
from up.data.bad_images import BadImage
from up.data.readers import PillowReader
from up.data.transforms.table import Resize, ToTensor
from up.deploy.measure import PackageTransform
from up.tasks.served import preprocessing_of


def transform_of(reader: PillowReader) -> tuple[PackageTransform, list[Operation]]:
    operations = preprocessing_of(reader, [Resize(size=(8, 8)), ToTensor()])
    manifest: Any = SimpleNamespace(preprocess=operations, input_size=(8, 8))
    return PackageTransform(manifest), operations


@pytest.fixture
def transparent(tmp_path: Path) -> str:
    levels = np.random.default_rng(0).integers(0, 256, (10, 12, 4), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("background", ["drop", "white", (255, 10, 90)])
def test_a_background_is_that_of_the_package(transparent: str, color: Any, background: Any) -> None:
    transform, operations = transform_of(PillowReader(color_mode=color, background=background))
    measured = transform(transform.reader(None)(transparent))
    assert np.array_equal(np.asarray(measured), Preprocessing(operations, (8, 8))(transparent))


def test_larger_images_than_the_package_takes_are_bad(transparent: str) -> None:
    transform, _ = transform_of(PillowReader(max_pixels=100))
    with pytest.raises(BadImage, match=facts("120", "100")):
        transform.reader(None)(transparent)
