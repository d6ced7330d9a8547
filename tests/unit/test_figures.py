"""Figures: names in any script, nothing clipped, equal bytes, and what happens without matplotlib."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from tests.harness.facts import facts
from up import figures
from up.bundle.answers.classes import Classes, ClassPrediction
from up.figures import Panel, font_for, is_drawable, missing_font, panels, render, shortened
from up.tasks.cls.evaluate.confusion import confusion_figure

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
    """Installs fonts on a system that has no others."""
    paths: list[str] = []
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: paths)

    def forget() -> None:
        figures._font_files.cache_clear()
        figures._font_file.cache_clear()

    def installed(name: str, letters: str) -> Path:
        (tmp_path / name).write_bytes(font_with(letters) if letters else b"no font")
        paths.append(str(tmp_path / name))
        forget()
        return tmp_path / name

    forget()
    yield installed
    forget()


def path_of(text: str) -> str:
    font = font_for(text, 14)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return str(font.path)


def test_the_font_that_has_the_letters(install: Install) -> None:
    install("broken.ttf", "")
    kana, chinese = install("Kana.ttf", "ネコ"), install("Han.otf", "猫犬 abc")
    assert path_of("ネコ") == str(kana)
    assert path_of("猫 a") == str(chinese)
    assert Path(path_of("кот قط")).name == "DejaVuSans.ttf"  # of matplotlib
    assert all(map(is_drawable, ("cat", "кот", "قط", "猫", "犬 b")))
    assert not any(map(is_drawable, ("बिल्ली", "кот 猫", "a\nb")))
    assert "BytesIO" in path_of("cat")


def test_text_fonts_come_before_styles(install: Install) -> None:
    for name in ("A-BoldItalic.ttf", "Z-Regular.ttf", "NotoSansCJK-Regular.ttc", "A-Bold.ttf"):
        install(name, "猫")
    assert Path(path_of("猫")).name == "NotoSansCJK-Regular.ttc"
    ordered = [Path(path).name for path in figures._font_files()]
    assert ordered == ["DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Z-Regular.ttf", "A-Bold.ttf", "A-BoldItalic.ttf"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("猫", ["'猫'", "(CJK)", "Noto Sans CJK"]),
        ("ネコ", ["(KATAKANA)", "Noto Sans CJK"]),
        ("बिल्ली", ["(DEVANAGARI)", "Noto Sans (Debian"]),
    ],
)
def test_a_missing_font_is_named_in_one_line(name: str, facts: list[str], install: Install) -> None:
    line = missing_font(["cat", "кот", name])
    assert line is not None
    assert "\n" not in line
    assert all(fact in line for fact in (*facts, "fonts"))
    assert missing_font(["cat", "кот"]) is None


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def picture_of(name: str) -> np.ndarray:
    return np.asarray(Classes([[ClassPrediction(3, name, 0.5)]]).draw(Image.new("RGB", (200, 64))))


def test_predictions_are_drawn_in_the_script_of_the_name(install: Install) -> None:
    with pytest.warns(UserWarning, match=facts("font", "letters", "'猫'")):
        number = picture_of("猫")
    assert np.array_equal(number, picture_of("class 3"))
    install("Han.ttf", "猫 0123456789.")
    assert not np.array_equal(picture_of("猫"), number)


def test_a_long_name_widens_the_drawing() -> None:
    wide = picture_of("a very long name of a class " * 4)
    assert wide.shape[1] > 500
    assert wide[64:, -12:].any()
    assert not wide[64:, -3:].any()


def test_a_confusion_matrix_in_any_script(install: Install) -> None:
    matrix = np.eye(2, dtype=np.int64)
    with pytest.warns(UserWarning, match="CJK"):
        numbered = confusion_figure(matrix, ["猫", "cat"])
    assert numbered == confusion_figure(matrix, ["#0", "cat"])
    install("Han.ttf", "猫")
    assert confusion_figure(matrix, ["猫", "cat"]) != numbered


def test_without_matplotlib_ascii_is_drawn_and_the_extra_is_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.figures.find_spec", lambda _: None)
    assert is_drawable("cat")
    line = missing_font(["cat", "кот"])
    assert line is not None
    assert "pip install -e '.[viz]'" in line
    with pytest.warns(UserWarning, match="viz"):
        picture_of("кот")


@pytest.mark.parametrize(
    ("text", "letters", "expected"),
    [("cat", 3, "cat"), ("cats", 3, "ca…"), ("犬猫", 4, "犬猫"), ("犬猫犬", 4, "犬…"), ("犬", 1, "犬…"), ("", 0, "")],
)
def test_long_text_is_shortened(text: str, letters: int, expected: str) -> None:
    assert shortened(text, letters) == expected


@pytest.mark.parametrize(("number", "shape"), [(1, (20, 30, 3)), (2, (20, 100, 3)), (5, (60, 20, 3)), (13, (20, 30, 3))])
def test_panels_have_no_clipped_text(number: int, shape: tuple[int, int, int]) -> None:
    pixels = pixels_of(png_of_panels(number, shape))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_equal_panels_give_equal_bytes() -> None:
    assert png_of_panels(2, (20, 100, 3)) == png_of_panels(2, (20, 100, 3))


def png_of_panels(number: int, shape: tuple[int, int, int]) -> bytes:
    shown = [Panel("image", np.full(shape, 200, np.uint8)), *[Panel("a long caption " * 5, heat=np.eye(3))] * number]
    words = {"title": "a very long title " * 9, "note": "$1 and $2 " * 20, "scale": "value of the channel"}
    return panels(shown, **words, ends=("min", "max"))


def test_the_settings_of_matplotlib_count_for_nothing_and_stay() -> None:
    import matplotlib

    def write(figure: Any) -> None:
        figure.suptitle("title")

    expected = render(2, 2, write)
    with matplotlib.rc_context({"figure.facecolor": "red", "font.size": 30}):
        assert render(2, 2, write) == expected
        assert matplotlib.rcParams["font.size"] == 30
