"""Blocks of YUV 4:2:0: the extension and NumPy make the same pixels of every part of an image, near those of Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from up.data import cache
from up.data.geometry import Box


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return (height, width), Box(top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))


@pytest.mark.skipif(cache._pixels is None, reason="the extension is not compiled")
@given(part=parts(), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_the_extension_equals_numpy(part: tuple[tuple[int, int], Box], seed: int) -> None:
    size, box = part
    half = ((size[0] + 1) // 2) * ((size[1] + 1) // 2)
    block = np.random.default_rng(seed).integers(0, 256, size[0] * size[1] + 2 * half, dtype=np.uint8)
    compiled = cache._rgb_of(block, size, box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_pixels", None)
        expected = cache._rgb_of(block, size, box)
    assert compiled.shape == expected.shape == (box.height, box.width, 3)
    assert (compiled == expected).all()


def test_colours_are_those_of_pillow() -> None:
    """Of an image whose colours are constant over 2 x 2 pixels nothing is lost but rounding."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    levels = coarse.repeat(2, axis=0).repeat(2, axis=1)
    expected = np.asarray(Image.fromarray(levels).convert("YCbCr").convert("RGB"), dtype=int)
    made = cache._rgb_of(cache.yuv420(levels), levels.shape[:2], Box(0, 0, *levels.shape[:2]))
    assert abs(made.astype(int) - expected).max() <= 1


@pytest.mark.skipif(cache._pixels is None, reason="the extension is not compiled")
@pytest.mark.parametrize("box", [(0, 0, 5, 4), (-1, 0, 2, 2), (0, 3, 4, 2), (0, 0, 0, 4)])
def test_parts_outside_of_the_image_are_an_error(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="part"):
        cache._pixels.rgb_of_yuv420(np.zeros(24, np.uint8), np.zeros((3, box[2], box[3]), np.uint8), (4, 4), box)
