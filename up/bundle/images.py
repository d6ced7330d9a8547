"""Images named on the command line: files, folders at any depth, patterns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from glob import glob
from pathlib import Path

from up.data.decoding import WITH_ARRAYS
from up.errors import UserError


def find_images(words: Iterable[str], suffixes: Collection[str] = WITH_ARRAYS) -> list[Path]:
    """Find all images, each once, in the order of the words and sorted within a folder or pattern.

    Files in a folder must end in one of ``suffixes``; a named file is taken whatever its suffix. Raises ``UserError`` for a word
    without images.
    """
    found: dict[Path, None] = {}
    for word in words:
        images = list(_meant_by(word, suffixes))
        if not images:
            what = "the folder contains no image" if Path(word).is_dir() else "no such file, folder or pattern"
            raise UserError(f"{word}: {what}. Expected images ({', '.join(sorted(suffixes))}), folders of them, or a pattern.")
        found.update(dict.fromkeys(images))
    return list(found)


def _meant_by(word: str, suffixes: Collection[str]) -> Iterator[Path]:
    path = Path(word)
    if path.is_dir():
        inner = (entry for entry in path.rglob("*") if entry.suffix.lower() in suffixes and entry.is_file())
        yield from sorted(entry for entry in inner if not any(part.startswith(".") for part in entry.relative_to(path).parts))
    elif path.is_file():
        yield path
    else:
        yield from (Path(entry) for entry in sorted(glob(word, recursive=True)) if Path(entry).is_file())
