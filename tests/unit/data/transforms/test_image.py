"""Images as transforms see them: kinds, sizes and the checks of settings."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from tests.harness.facts import facts
from up.data.transforms.image import expect_range, height_width, size_of, with_pillow
from up.errors import UserError

LEVELS = torch.arange(3 * 2 * 5, dtype=torch.uint8).view(3, 2, 5)


def test_size_is_height_then_width_for_both_kinds() -> None:
    assert size_of(LEVELS) == (2, 5)
    assert size_of(F.to_pil_image(LEVELS)) == (2, 5)


def test_operations_give_back_the_kind_they_got() -> None:
    turned = with_pillow(lambda image: image.rotate(180), LEVELS)
    assert torch.equal(turned, LEVELS.flip(1, 2))
    assert with_pillow(lambda image: image, F.to_pil_image(LEVELS)).getpixel((0, 0)) == (0, 10, 20)


def test_pillow_operations_refuse_float_tensors() -> None:
    with pytest.raises(UserError, match=facts("torch.float32", "uint8", "to_tensor")):
        with_pillow(lambda image: image, LEVELS.float())


def test_height_width() -> None:
    assert height_width(7) == (7, 7)
    assert height_width((3, 4)) == (3, 4)
    with pytest.raises(UserError, match=facts("size", "3", "0")):
        height_width((3, 0))


def test_ranges() -> None:
    assert expect_range((0.2, 0.2), "scale") == (0.2, 0.2)
    with pytest.raises(UserError, match=facts("[1", "0.2]", "[low", "high]")):
        expect_range((1, 0.2), "scale")
