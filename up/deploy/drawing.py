"""The best class of each image, drawn on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from up.data.decoding import Color, read_rgb
from up.deploy.answers import Answer, Guess
from up.errors import StorageError


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
    """The best class, or the labels of a set that are present."""
    present = [guess for guess in guesses if guess.present]
    shown = guesses[:1] if guesses[0].present is None else present
    return ", ".join(f"{guess.name} {guess.score:.2f}" for guess in shown) or "no label"


def _picture(answer: Answer, background: Color | None) -> Image.Image:
    image = read_rgb(answer.file, background=background)
    size = max(12, min(image.size) // 16)
    lines = [_line(guesses) for guesses in answer.heads]
    band = Image.new("RGB", (max(image.width, 120), image.height + (size + 6) * len(lines)), "black")
    band.paste(image, (0, 0))
    pen = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        pen.text((3, image.height + 2 + row * (size + 6)), line, fill="white", font=ImageFont.load_default(size))
    return band


def _free_name(folder: Path, stem: str, taken: set[Path]) -> Path:
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path
