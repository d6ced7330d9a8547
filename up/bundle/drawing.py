"""The best class of each image, drawn on it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from up.bundle.predictions import Answer, Guess
from up.data.decoding import Color, read_rgb
from up.errors import StorageError
from up.fonts import font_for, is_drawable, missing_font


def drawn(answers: Iterable[Answer], folder: Path, background: Color | None = None) -> Iterator[Answer]:
    """The answers; as each goes by, a PNG is written for its image. Equal names in different folders get a number.

    Transparent images are drawn over ``background``, as the net saw them.
    """
    taken: set[Path] = set()
    for answer in answers:
        if answer.error is None:
            path = _free_name(folder, Path(answer.file).stem, taken)
            taken.add(path)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _picture(answer, background).save(path)
            except OSError as error:
                raise StorageError(f"{path}: cannot be written ({error.strerror or error}).") from error
        yield answer


def _line(guesses: Sequence[Guess]) -> str:
    """The best class, or the labels of a set that are present; by number where no font here has the name's letters."""
    present = [guess for guess in guesses if guess.present]
    shown = guesses[:1] if guesses[0].present is None else present
    if (line := missing_font(guess.name for guess in shown)) is not None:
        warnings.warn(line, stacklevel=2)
    named = [(guess.name if is_drawable(guess.name) else f"class {guess.label}", guess.score) for guess in shown]
    return ", ".join(f"{name} {score:.2f}" for name, score in named) or "no label"


def _picture(answer: Answer, background: Color | None) -> Image.Image:
    image = read_rgb(answer.file, background=background)
    size = max(12, min(image.size) // 16)
    lines = [(line, font_for(line, size)) for line in map(_line, answer.heads)]
    width = max(image.width, 120, *(math.ceil(font.getlength(line)) + 6 for line, font in lines))
    band = Image.new("RGB", (width, image.height + (size + 6) * len(lines)), "black")
    band.paste(image, (0, 0))
    pen = ImageDraw.Draw(band)
    for row, (line, font) in enumerate(lines):
        pen.text((3, image.height + 2 + row * (size + 6)), line, fill="white", font=font)
    return band


def _free_name(folder: Path, stem: str, taken: set[Path]) -> Path:
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path
