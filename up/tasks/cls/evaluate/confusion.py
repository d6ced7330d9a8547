"""Which class was taken for which: the matrix, and a picture of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from up.fonts import Font, font_for, is_drawable, missing_font
from up.tasks.cls.evaluate.predictions import Floats, HeadPredictions, Ints
from up.tasks.cls.evaluate.scoring import share

LABELLED = 30  # above, there is no room for the names: ticks with class numbers instead
LARGEST = 1000  # above, a matrix of C x C cells is neither drawn nor written in full

_INK, _FAINT, _PAPER, _GRID = (32, 36, 44), (112, 118, 130), (255, 255, 255), (226, 229, 234)
_RIGHT, _WRONG = (23, 92, 168), (206, 62, 28)  # blue and vermilion: told apart by colour-blind readers too
_LONGEST_NAME = 360  # pixels
_MARGIN = 24


def confusion_matrix(head: HeadPredictions) -> Ints:
    """(C, C) images by true class (row) and predicted class (column); images without a readable score are left out."""
    assert head.gt is not None, "a head without labels has no confusion"
    readable = head.preds >= 0
    cells = head.gt[readable].astype(np.int64) * head.classes + head.preds[readable]
    return np.bincount(cells, minlength=head.classes**2).reshape(head.classes, head.classes)


def draw_confusion(matrix: Ints, names: Sequence[str]) -> Image.Image:
    """The matrix (C, C) as a picture: each row in shares of its true class, right ones blue, wrong ones red."""
    classes = len(matrix)
    if classes > LABELLED:
        return _framed(matrix, max(1, 840 // classes), [])
    if (line := missing_font(names)) is not None:
        warnings.warn(line, stacklevel=2)
    cell = 64 if classes <= 5 else 44 if classes <= 12 else 30
    size = 14 if classes <= 12 else 12
    shown = [name if is_drawable(name) else f"#{number}" for number, name in enumerate(names)]
    return _framed(matrix, cell, [(_fitting(name, font), font) for name in shown for font in [font_for(name, size)]])


def _framed(matrix: Ints, cell: int, names: Sequence[tuple[str, Font]]) -> Image.Image:
    """The cells with a title above, the true classes at the left, the predicted ones below and a scale at the right."""
    side = cell * len(matrix)
    gutter = max((int(font.getlength(name)) for name, font in names), default=40) + 10
    left, top = _MARGIN + 22 + gutter, _MARGIN + 52
    width = left + max(side, 260) + 110
    picture = Image.new("RGB", (width, top + max(side, 150) + gutter + 30 + _MARGIN), _PAPER)
    picture.paste(Image.fromarray(np.kron(_colours(matrix), np.ones((cell, cell, 1), dtype=np.uint8))), (left, top))
    draw = ImageDraw.Draw(picture)
    images = int(matrix.sum())
    right = int(matrix.trace())
    draw.text((left, _MARGIN), "Confusion matrix", _INK, ImageFont.load_default(20))
    line = f"{images:,} images, {len(matrix):,} classes, {100 * right / max(1, images):.2f} % right"
    draw.text((left, _MARGIN + 26), line, _FAINT, ImageFont.load_default(13))
    if names:
        _grid(draw, (left, top), cell, len(matrix))
        _numbers(draw, (left, top), cell, matrix)
        _names(picture, (left, top), cell, names)
    else:
        _ticks(picture, (left, top), cell, len(matrix))
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline=_FAINT)
    axis = ImageFont.load_default(14)
    draw.text((left + side // 2, top + side + gutter + 6), "predicted class", _INK, axis, anchor="ma")
    _upright(picture, "true class", (_MARGIN, top + side // 2), axis, _INK, centred=True)
    _scale(draw, (left + side + 24, top))
    return picture


def _colours(matrix: Ints) -> npt.NDArray[np.uint8]:
    """(C, C, 3): white for none of the true class, full colour for all of it."""
    strength = _strength(share(matrix, np.broadcast_to(matrix.sum(axis=1, keepdims=True), matrix.shape)))[..., None]
    diagonal = np.eye(len(matrix), dtype=bool)[..., None]
    full = np.where(diagonal, np.array(_RIGHT), np.array(_WRONG))
    return np.asarray(255 + strength * (full - 255.0)).round().astype(np.uint8)


def _strength(part: Floats) -> Floats:
    """The square root lifts the few wrong images of a good net into sight."""
    return np.sqrt(part)


def _grid(draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, classes: int) -> None:
    left, top = corner
    for line in range(1, classes):
        draw.line((left + line * cell, top, left + line * cell, top + classes * cell - 1), _GRID)
        draw.line((left, top + line * cell, left + classes * cell - 1, top + line * cell), _GRID)


def _numbers(draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, matrix: Ints) -> None:
    """The images of each cell that has any, white on dark ground; short forms such as 12k where it is narrow."""
    left, top = corner
    strength = _strength(share(matrix, np.broadcast_to(matrix.sum(axis=1, keepdims=True), matrix.shape)))
    font = ImageFont.load_default(13 if cell > 30 else 11)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        number = int(matrix[row, column])
        text = str(number) if font.getlength(str(number)) <= cell - 4 else f"{number // 1000}k"
        place = (left + column * cell + cell / 2, top + row * cell + cell / 2)
        draw.text(place, text, _PAPER if strength[row, column] > 0.6 else _INK, font, anchor="mm")


def _names(picture: Image.Image, corner: tuple[int, int], cell: int, names: Sequence[tuple[str, Font]]) -> None:
    left, top = corner
    draw = ImageDraw.Draw(picture)
    for number, (name, font) in enumerate(names):
        middle = number * cell + cell // 2
        draw.text((left - 8, top + middle), name, _INK, font, anchor="rm")
        _upright(picture, name, (left + middle, top + cell * len(names) + 6), font, _INK, centred=False)


def _ticks(picture: Image.Image, corner: tuple[int, int], cell: int, classes: int) -> None:
    left, top = corner
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    step = next(step for step in (10, 20, 50, 100, 200) if classes / step <= 12)
    for number in range(0, classes, step):
        middle = number * cell + cell // 2
        draw.line((left - 6, top + middle, left - 2, top + middle), _FAINT)
        draw.line((left + middle, top + classes * cell + 2, left + middle, top + classes * cell + 6), _FAINT)
        draw.text((left - 10, top + middle), str(number), _FAINT, font, anchor="rm")
        draw.text((left + middle, top + classes * cell + 10), str(number), _FAINT, font, anchor="ma")


def _scale(draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    """What the colours mean: the share of the true class, right and wrong side by side."""
    left, top = corner
    small = ImageFont.load_default(11)
    draw.text((left, top), "share of the", _FAINT, small)
    draw.text((left, top + 13), "true class", _FAINT, small)
    for place, colour in enumerate((_RIGHT, _WRONG)):
        for level in range(100):
            strength = float(_strength(np.array(1 - level / 99)))
            shade = tuple(round(255 + strength * (full - 255)) for full in colour)
            draw.line((left + 14 * place, top + 36 + level, left + 14 * place + 12, top + 36 + level), shade)
    for text, level in (("100 %", 0), ("50 %", 49), ("0 %", 99)):
        draw.text((left + 32, top + 36 + level), text, _FAINT, small, anchor="lm")


def _upright(
    picture: Image.Image, text: str, place: tuple[int, int], font: Font, ink: tuple[int, int, int], *, centred: bool
) -> None:
    """Text that reads upwards: its end at ``place``, or its middle when ``centred``."""
    box = Image.new("L", (int(font.getlength(text)) + 2, 20), 0)
    ImageDraw.Draw(box).text((0, 10), text, 255, font, anchor="lm")
    turned = box.rotate(90, expand=True)
    x, y = place
    at = (x - turned.width // 2 if not centred else x, y - turned.height // 2 if centred else y)
    picture.paste(ink, at, turned)


def _fitting(name: str, font: Font) -> str:
    while font.getlength(name) > _LONGEST_NAME:
        name = name.rstrip("…")[:-1] + "…"
    return name
