"""Images of any channels and units as pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from up.data.transforms.table import LevelsToTensor, Normalize, Resize, ToTensor
from up.data.transforms.viewing import Units, channels_note, pixels_of, units_after, with_boxes

LEVELS = torch.arange(0, 240, 10, dtype=torch.uint8).reshape(1, 4, 6)


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (6, [0, 1, 2])], ids=["grey", "two", "rgb", "six"]
)
def test_channels(channels: int, shown: list[int]) -> None:
    image = torch.cat([LEVELS + number for number in range(channels)])
    pixels = pixels_of(image, Units())
    assert pixels.shape == (4, 6, 3)
    assert [int(level) for level in pixels[1, 2]] == [int(image[at, 1, 2]) for at in shown]
    assert bool(channels_note(channels)) == (channels != 3)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_a_normalised_image_looks_like_its_levels(top: float) -> None:
    image = torch.cat([LEVELS] * 3)
    to_tensor = ToTensor() if top == 1 else LevelsToTensor()
    normalize = Normalize(mean=(0.3 * top, 0.4 * top, 0.5 * top), std=(0.2 * top, 0.2 * top, 0.3 * top))
    normalised = normalize(to_tensor(image))
    units = units_after([Resize(size=8), to_tensor, normalize])
    assert np.array_equal(pixels_of(normalised, units), pixels_of(image, Units()))
    assert np.array_equal(pixels_of(to_tensor(image), units_after([to_tensor])), pixels_of(image, Units()))


def test_unknown_units_are_stretched() -> None:
    pixels = pixels_of(torch.tensor([[[-3.0, 1.0, float("nan")]]]), Units(None))
    assert pixels[0, :, 0].tolist() == [0, 255, 191]
    assert "stretched" in str(Units(None))


def test_boxes_are_drawn_into_a_copy() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    drawn = with_boxes(pixels, {"boxes": [[1, 1, 5, 6]]})
    assert not pixels.any()
    assert drawn[1, 1].any()
    assert drawn[5, 4].any()
    assert not drawn[3, 3].any()
