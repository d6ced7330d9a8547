"""Encoded images of every kind that users have."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width * height).integers(0, 90, (height, width))
    levels = np.stack([columns * 255 // width, rows * 255 // height, (columns * rows + noise) % 256, rows % 256], axis=-1)
    return Image.fromarray(levels.astype(np.uint8), "RGBA").convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


MIXED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(picture(61, 47), "JPEG"),
    "rgba": lambda: encoded(picture(47, 61, "RGBA"), "PNG"),
    "palette": lambda: encoded(picture(50, 70).quantize(32), "PNG", transparency=3),
    "grey": lambda: encoded(picture(64, 48, "L"), "JPEG"),
    "cmyk": lambda: encoded(picture(64, 48, "CMYK"), "JPEG"),
    "turned": lambda: encoded(picture(80, 40), "JPEG", **turned(6)),
    "deep": lambda: encoded(Image.fromarray((np.asarray(picture(40, 44, "L")).astype(np.uint16) << 8) + 200), "PNG"),
    "tiny": lambda: encoded(picture(3, 2), "PNG"),
    "one bit": lambda: encoded(picture(40, 44, "1"), "PNG"),
}
