from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.harness.facts import facts
from up.bundle.archive import PackageError, is_allowed
from up.bundle.manifest import Tolerance
from up.bundle.testvectors import Vector, drawn_images, from_npy, members_of, npy
from up.data.decoding import read_rgb


def test_arrays_come_back() -> None:
    values = np.random.default_rng(0).standard_normal((1, 3, 5, 4)).astype(np.float32)
    assert np.array_equal(np.load(io.BytesIO(npy(values)), allow_pickle=False), values)
    assert np.array_equal(from_npy(npy(values), (1, 3, 5, 4), "x"), values)


@pytest.mark.parametrize(
    "data",
    [
        npy(np.zeros((1, 5), np.float32)),
        npy(np.zeros((1, 4), np.float32))[:-1],
        npy(np.zeros((1, 4), np.float32)) + b"\0",
        npy(np.zeros((1, 4), np.float32)).replace(b"<f4", b"|O4"),
        npy(np.zeros((1, 4), np.float32)).replace(b"(1, 4)", b"(1<<44,)"),
        b"",
    ],
)
def test_an_array_is_of_the_shape_that_is_due(data: bytes) -> None:
    """What the file says of its own size or type is never believed: it could ask for any memory, or to run code."""
    with pytest.raises(PackageError, match=facts("a.npy", "float32", "1", "4")):
        from_npy(data, (1, 4), "a.npy")


@pytest.mark.parametrize("outputs", [["scores"], ["boxes", "Scores/1"]])
def test_files_and_what_the_manifest_says_of_them(outputs: list[str]) -> None:
    vector = Vector("real_0", b"png", np.zeros((1, 3, 2, 2), np.float32), {name: np.ones((1, 4), np.float32) for name in outputs})
    entry = vector.entry(Tolerance(from_tensor=1e-4, from_image=1e-2))
    assert set(members_of([vector], [entry])) == set(entry.members)
    assert len(entry.members) == 2 + len(outputs)
    assert all(is_allowed(name) for name in entry.members)
    assert entry.image == "testvectors/real_0.png"


def test_drawn_images_are_transparent_and_turned() -> None:
    (first, transparent), (second, turned) = drawn_images()
    assert (first, second) == ("drawn_transparent", "drawn_turned")
    assert Image.open(io.BytesIO(transparent)).mode == "RGBA"
    assert read_rgb(transparent).size == (97, 61)
    assert read_rgb(turned).size == (61, 97)
    assert drawn_images() == drawn_images()
