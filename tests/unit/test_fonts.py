"""Names in any script: a font that has their letters is found, a missing one is named, and what is drawn shows it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from up import fonts
from up.bundle.answers.classes import Classes, ClassPrediction
from up.bundle.predictions import Prediction, drawn
from up.data.decoding import read_rgb
from up.fonts import font_for, is_drawable, missing_font
from up.tasks.cls.evaluate.confusion import draw_confusion

Install = Callable[[str, str], Path]


def font_with(letters: str) -> bytes:
    """Pillow's own font, changed so that it has only ``letters``: each looks like one of its letters."""
    held = ImageFont.load_default(12)
    assert isinstance(held, ImageFont.FreeTypeFont)
    assert isinstance(held.path, io.BytesIO)
    data = held.path.getvalue()
    groups = b"".join(struct.pack(">III", ord(letter), ord(letter), 30 + place) for place, letter in enumerate(sorted(letters)))
    table = struct.pack(">HHIIL", 12, 0, 16 + len(groups), 0, len(letters)) + groups
    cmap = struct.pack(">HHHHI", 0, 1, 3, 10, 12) + table
    number = struct.unpack(">H", data[4:6])[0]
    entries = [struct.unpack(">4sIII", data[12 + 16 * place : 28 + 16 * place]) for place in range(number)]
    tables = {tag: cmap if tag == b"cmap" else data[at : at + size] for tag, _, at, size in entries}
    made, body = data[:12], b""
    for tag, content in tables.items():
        made += struct.pack(">4sIII", tag, 0, 12 + 16 * number + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    return made + body


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts fonts into the only folder in which fonts are looked for."""
    folder = tmp_path / "fonts"
    monkeypatch.setattr(fonts, "_folders", lambda: iter([folder, tmp_path / "none"]))
    fonts._installed.cache_clear()

    def installed(name: str, letters: str) -> Path:
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "deep" / name).write_bytes(font_with(letters) if letters else b"no font")
        fonts._installed.cache_clear()
        return folder / "deep" / name

    yield installed
    fonts._installed.cache_clear()


def path_of(text: str) -> str:
    font = font_for(text, 14)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return str(font.path)


def test_the_font_that_has_the_letters(install: Install) -> None:
    cyrillic, chinese = install("Cyrillic.ttf", "кот"), install("Han.otf", "猫犬 abc")
    install("broken.ttf", "")
    assert path_of("кот") == str(cyrillic)
    assert path_of("猫 a") == str(chinese)
    assert all(map(is_drawable, ("cat", "кот", "猫", "犬 b")))
    assert not any(map(is_drawable, ("ネコ", "кот 猫", "a\nb")))
    assert "BytesIO" in path_of("cat")


def test_text_fonts_come_before_styles(install: Install) -> None:
    for name in ("A-BoldItalic.ttf", "Z-Regular.ttf", "NotoSansCJK-Regular.ttc", "A-Bold.ttf"):
        install(name, "猫")
    assert Path(path_of("猫")).name == "NotoSansCJK-Regular.ttc"
    assert [Path(path).name for path in fonts._installed()][1:] == ["Z-Regular.ttf", "A-Bold.ttf", "A-BoldItalic.ttf"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("猫", ["'猫'", "(CJK)", "Noto Sans CJK"]),
        ("ネコ", ["(KATAKANA)", "Noto Sans CJK"]),
        ("बिल्ली", ["(DEVANAGARI)", "Noto Sans (Debian"]),
    ],
)
def test_a_missing_font_is_named_in_one_line(name: str, facts: list[str], install: Install, tmp_path: Path) -> None:
    install("Cyrillic.ttf", "кот")
    line = missing_font(["cat", "кот", name])
    assert line is not None
    assert "\n" not in line
    assert all(fact in line for fact in (*facts, str(tmp_path / "fonts")))
    assert missing_font(["cat", "кот"]) is None


def picture_of(name: str, tmp_path: Path) -> np.ndarray:
    Image.new("RGB", (200, 64)).save(tmp_path / "x.png")
    result = Classes([[ClassPrediction(3, name, 0.5)]])
    list(drawn([Prediction(str(tmp_path / "x.png"), result)], tmp_path / "out", read_rgb))
    return np.asarray(Image.open(tmp_path / "out" / "x.png"))


def test_predictions_are_drawn_in_the_script_of_the_name(install: Install, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no font here has all letters of '猫'"):
        number = picture_of("猫", tmp_path)
    assert np.array_equal(number, picture_of("class 3", tmp_path))
    install("Han.ttf", "猫 0123456789.")
    assert not np.array_equal(picture_of("猫", tmp_path), number)


def test_a_long_name_widens_the_drawing(install: Install, tmp_path: Path) -> None:
    wide = picture_of("a very long name of a class " * 4, tmp_path)
    assert wide.shape[1] > 500
    assert wide[64:, -12:].any()
    assert not wide[64:, -3:].any()


def test_a_confusion_matrix_in_any_script(install: Install) -> None:
    matrix = np.eye(2, dtype=np.int64)
    with pytest.warns(UserWarning, match="CJK"):
        numbered = draw_confusion(matrix, ["猫", "cat"])
    assert numbered == draw_confusion(matrix, ["#0", "cat"])
    install("Han.ttf", "猫")
    assert draw_confusion(matrix, ["猫", "cat"]) != numbered
