"""Images, heat maps and rows of them as pictures to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from up.fonts import Font, font_for

Floats = npt.NDArray[np.float64]

_INK, _FAINT, _PAPER = (32, 36, 44), (112, 118, 130), (255, 255, 255)
_RAMP = ((18, 10, 60), (96, 18, 120), (190, 44, 90), (240, 120, 30), (255, 236, 120))  # ever lighter: it survives grey print
_OPAQUE = 0.8  # how much of the strongest heat covers the image
_MARGIN, _GAP, _CAPTION, _HEADER, _FOOTER = 16, 10, 20, 46, 26


@dataclass(frozen=True)
class Panel:
    """A picture with a line below it."""

    picture: Image.Image
    caption: str = ""


def photo(image: Tensor) -> Image.Image:
    """An image (C, H, W) in whatever units, its smallest number black and its largest white."""
    pixels = stretched(image.detach().float().cpu().numpy()).transpose(1, 2, 0)
    if pixels.shape[2] != 3:
        pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return Image.fromarray(_bytes(255 * pixels))


def stretched(values: npt.ArrayLike) -> Floats:
    """``values`` moved and scaled to 0..1; all 0 where they are all the same, and where they are not finite."""
    numbers = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = numbers.min(), numbers.max()
    return np.asarray((numbers - low) / (high - low) if high > low else np.zeros_like(numbers))


def coloured(heat: Floats) -> npt.NDArray[np.uint8]:
    """0..1 in any shape as colours (…, 3) from dark violet over red to pale yellow."""
    stops = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(heat, stops, levels) for levels in zip(*_RAMP, strict=True)]
    return _bytes(np.stack(channels, axis=-1))


def heat_picture(heat: Floats, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    """A map (h, w) of 0..1 in colours, its places as blocks unless resampled; ``size`` is (width, height) in pixels."""
    resized = Image.fromarray(heat.astype(np.float32)).resize(size, resample)
    return Image.fromarray(coloured(np.asarray(resized, dtype=np.float64).clip(0, 1)))


def overlaid(picture: Image.Image, heat: Floats) -> Image.Image:
    """The picture in grey, so that all colour is heat, under a map (h, w) of 0..1, bilinear between its places."""
    smooth = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    level = np.clip(np.asarray(smooth, dtype=np.float64), 0, 1)
    cover = _OPAQUE * level[..., None]
    return Image.fromarray(_bytes((1 - cover) * np.asarray(picture.convert("L"))[..., None] + cover * coloured(level)))


def enlarged(picture: Image.Image, shorter_side: int) -> Image.Image:
    """The picture with a shorter side of so many pixels, where it is smaller."""
    factor = shorter_side / min(picture.size)
    return picture if factor <= 1 else picture.resize((round(picture.width * factor), round(picture.height * factor)))


def sheet(first: Panel, others: Sequence[Panel], title: str, subtitle: str) -> Image.Image:
    """A panel at the left and the others in a square beside it, all of one size, under a title, over a scale of colours."""
    width, height = first.picture.size
    columns = math.ceil(math.sqrt(len(others)))
    rows = math.ceil(len(others) / columns)
    across, down = width + _GAP, height + _CAPTION + _GAP
    page = (2 * _MARGIN + (columns + 1) * across - _GAP, 2 * _MARGIN + _HEADER + rows * down - _GAP + _FOOTER)
    picture = Image.new("RGB", page, _PAPER)
    draw = ImageDraw.Draw(picture)
    _text(draw, (_MARGIN, _MARGIN - 4), title, 18, _INK, page[0] - 2 * _MARGIN)
    _text(draw, (_MARGIN, _MARGIN + 20), subtitle, 12, _FAINT, page[0] - 2 * _MARGIN)
    places = [(0, 0), *((number // columns, 1 + number % columns) for number in range(len(others)))]
    for panel, (row, column) in zip([first, *others], places, strict=True):
        left, top = _MARGIN + column * across, _MARGIN + _HEADER + row * down
        picture.paste(panel.picture, (left, top))
        _text(draw, (left, top + height + 3), panel.caption, 12, _INK, width)
    _scale(picture, draw, (_MARGIN, page[1] - _MARGIN - 12))
    return picture


def _scale(picture: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    left, top = corner
    _text(draw, (left, top - 1), "low", 11, _FAINT, 40)
    picture.paste(heat_picture(np.linspace(0, 1, 100)[None], (100, 10)), (left + 28, top + 2))
    _text(draw, (left + 136, top - 1), "high", 11, _FAINT, 40)


def _text(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, ink: tuple[int, int, int], width: int) -> None:
    font = font_for(text, size)
    draw.text(place, fitting(text, font, width), ink, font)


def fitting(text: str, font: Font, width: int) -> str:
    """The text, cut off with ``…`` where it is wider than ``width`` pixels."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _bytes(colours: Floats) -> npt.NDArray[np.uint8]:
    return np.asarray(colours).round().astype(np.uint8)
