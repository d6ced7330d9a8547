"""Geometry that training and packages share: numbers alone, without torch."""

from __future__ import annotations

from typing import NamedTuple

Size = tuple[int, int]  # height, width


def center_corner(size: Size, crop: Size) -> Size:
    """(top, left) of the middle ``crop`` of an image of ``size``.

    It is rounded half to even, as torchvision does, and negative where the image is smaller, the odd pixel at the end.
    """
    top, left = (
        round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2) for side, wanted in zip(size, crop, strict=True)
    )
    return top, left


class Box(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int
