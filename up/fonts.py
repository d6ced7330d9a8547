"""Fonts for names in any script: Pillow's own for ASCII, else an installed one that has all letters of a text."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PREFERRED = ("dejavusans.ttf", "notosans-regular", "notosanscjk-regular", "notosanscjksc-regular", "arialunicode")
_STYLES = ("bold", "italic", "oblique", "mono", "light", "thin", "black", "condensed", "serif", "emoji")  # the last to be taken
_NO_CHARACTER = "\uffff"  # which every font draws as the sign of a missing one
_PROBE = 16  # pixels
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")


def font_for(text: str, size: int) -> Font:
    """A font of ``size`` pixels that has all letters of ``text``; Pillow's own, which has ASCII, where none has."""
    if _is_plain(text):
        return ImageFont.load_default(size)
    path = next((path for path in _installed() if _has_all(path, text)), None)
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def is_drawable(text: str) -> bool:
    """Whether some font here has all letters of ``text``."""
    return text.isprintable() and (_is_plain(text) or any(_has_all(path, text) for path in _installed()))


def missing_font(names: Iterable[str]) -> str | None:
    """The line that says which font is missing for ``names``; None where all can be drawn."""
    name = next((name for name in names if name.isprintable() and not is_drawable(name)), None)
    if name is None:
        return None
    lacking = [letter for letter in name if not any(_has_all(path, letter) for path in _installed()) and not _is_plain(letter)]
    script = unicodedata.name((lacking or [*name])[0], "this script").split()[0]
    family = "Noto Sans CJK (Debian: fonts-noto-cjk)" if script in _EAST_ASIAN else "Noto Sans (Debian: fonts-noto-core)"
    folder = next(_folders())
    return (
        f"no font here has all letters of {name[:40]!r} ({script}): images show the class number instead of such names. "
        f"Install {family}, or put a .ttf file with these letters into {folder}."
    )


def _is_plain(text: str) -> bool:
    return all(" " <= letter <= "~" for letter in text)


def _folders() -> Iterator[Path]:
    """The folders in which systems keep fonts, the user's first, and matplotlib's."""
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft/Windows/Fonts"
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
    elif sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
    else:
        yield from (home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts"))
    matplotlib = find_spec("matplotlib")
    for place in (matplotlib.submodule_search_locations if matplotlib else None) or ():
        yield Path(place) / "mpl-data/fonts/ttf"


@cache
def _installed() -> tuple[str, ...]:
    """All font files, those for running text first."""
    found = [
        file
        for folder in _folders()
        if folder.is_dir()
        for file in folder.rglob("*")
        if file.suffix.lower() in (".ttf", ".otf", ".ttc")
    ]
    return tuple(str(file) for file in sorted(found, key=_rank))


def _rank(file: Path) -> tuple[int, int, str]:
    name = file.name.lower()
    preferred = next((place for place, start in enumerate(_PREFERRED) if name.startswith(start)), len(_PREFERRED))
    return preferred, sum(style in name for style in _STYLES), name


def _has_all(path: str, text: str) -> bool:
    return all(letter.isspace() or _has(path, letter) for letter in text)


@cache
def _has(path: str, letter: str) -> bool:
    """Whether a font draws a letter otherwise than one that it lacks."""
    try:
        font = ImageFont.truetype(path, _PROBE)
        drawn, lacking = font.getmask(letter), font.getmask(_NO_CHARACTER)
    except (OSError, ValueError):  # damaged, or of one size only, as those of coloured emoji
        return False
    return drawn.size != lacking.size or bytes(drawn) != bytes(lacking)
