"""The random crop of this package, next to torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from up.data.transforms.crop import RandomCrop
from up.data.transforms.table import TRANSFORMS

KINDS: dict[str, dict[str, Any]] = {
    "inside": {"size": 16},
    "as large": {"size": (20, 27)},
    "black": {"size": (20, 27), "padding": 3},
    "wider than high": {"size": (24, 12), "padding": (1, 4)},
    "four sides": {"size": 20, "padding": (1, 2, 3, 4), "padding_mode": "edge"},
    "reflect": {"size": (20, 27), "padding": 4, "padding_mode": "reflect"},
    "symmetric": {"size": 20, "padding": 4, "padding_mode": "symmetric"},
    "only where needed": {"size": 32, "pad_if_needed": True, "padding_mode": "reflect"},
    "white": {"size": (20, 27), "padding": 3, "fill": 255},
}


def photo(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 27, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_and_pixels_are_those_of_torchvision(kind: str, mode: str) -> None:
    ours, theirs, image = RandomCrop(**KINDS[kind]), v2.RandomCrop(**KINDS[kind]), photo(mode)
    for seed in range(20):
        found = []
        for crop in (ours, theirs):
            torch.manual_seed(seed)
            found.append((np.asarray(crop(image)), torch.rand(1).item()))
        assert np.array_equal(found[0][0], found[1][0])
        assert found[0][1] == found[1][1]  # as many draws


def test_masks_move_with_their_image() -> None:
    crop, image = RandomCrop(16, padding=2), photo()
    whole = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    image, mask = crop(image, tv_tensors.Mask(whole[0]))
    assert np.array_equal(np.asarray(image)[..., 0], mask.numpy())


def test_a_crop_that_is_too_large_is_refused_as_by_torchvision() -> None:
    with pytest.raises(ValueError, match=r"\(99, 99\)"):
        RandomCrop(99)(photo())


def test_it_has_the_name_of_torchvisions() -> None:
    assert TRANSFORMS.get("v2.RandomCrop") is RandomCrop
