"""The best class of each image, drawn on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from up.deploy.answers import Answer
from up.errors import StorageError


def draw_answers(answers: Iterable[Answer], folder: Path) -> list[Path]:
    """Write a PNG for each image that has an answer; equal names in different folders get a number."""
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for answer in answers:
            if answer.error is None:
                written.append(_free_name(folder, Path(answer.file).stem, written))
                _drawn(answer).save(written[-1])
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written to ({error.strerror or error}).") from error
    return written


def _drawn(answer: Answer) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(answer.file)).convert("RGB")
    size = max(12, min(image.size) // 16)
    lines = [f"{guesses[0].name} {guesses[0].score:.2f}" for guesses in answer.heads]
    band = Image.new("RGB", (max(image.width, 120), image.height + (size + 6) * len(lines)), "black")
    band.paste(image, (0, 0))
    pen = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        pen.text((3, image.height + 2 + row * (size + 6)), line, fill="white", font=ImageFont.load_default(size))
    return band


def _free_name(folder: Path, stem: str, taken: list[Path]) -> Path:
    path, number = folder / f"{stem}.png", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path
