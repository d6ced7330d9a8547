"""Pages: a file for a browser and a JSON file with the same content, images as data URIs, figures in the colours of the page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from up.figures import INK
from up.pages import page
from up.pages.images import svg, thumbnail
from up.pages.page import as_format, render, write_page

pytestmark = pytest.mark.unit
CONTENT = {
    "title": "Search of <b>",
    "honesty": "",
    "stages": [
        {
            "name": "hpo",
            "algorithm": "tpe",
            "objectives": ["top1"],
            "states": "1 complete",
            "seconds": 75.0,
            "verdict": "",
            "rows": [{"row": "tpe", "trials": 1, "value": float("nan")}],
            "front": (0,),
            "importance": {},
            "lineage": [],
            "trials": [],
        }
    ],
    "final": [],
    "verdict": [],
    "commands": ["up search 'a b.yaml'"],
}


def test_a_page_is_one_file_and_its_content_is_in_json(tmp_path: Path) -> None:
    written = write_page(tmp_path, "report", "search/page.html", CONTENT)
    assert [path.name for path in written] == ["report.json", "report.html"]
    content = json.loads(written[0].read_text())
    assert content["stages"][0]["rows"][0]["value"] is None  # JSON has no NaN
    assert content["stages"][0]["front"] == [0]
    text = written[1].read_text()
    assert "Search of &lt;b&gt;" in text
    assert "<title>Search of <b>" not in text
    assert "&#39;a b.yaml&#39;" in text
    assert re.findall(r'(?:src|href)="(?!data:|#)', text) == []  # nothing from elsewhere
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text)


def test_contents_link_every_section(tmp_path: Path) -> None:
    text = render("search/page.html", CONTENT, {}, json_name="report.json")
    assert re.findall(r'<li><a href="#([^"]+)">', text) == ["hpo", "commands"]


def test_without_jinja_the_json_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"jinja2.*pip install"):
        written = write_page(tmp_path, "report", "search/page.html", CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"] == [path.name for path in written]


def test_names_of_files_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    write_page(tmp_path, "report", "search/page.html", {**CONTENT, "title": "a\udcffb"})
    assert "dcff" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "percent", ""),
        (0.961, "percent", "96.10 %"),
        ({"value": 0.961, "low": 0.936, "high": 0.977, "n": 359}, "interval", "96.10 % (93.6–97.7, n = 359)"),
        ({"value": 0.961, "low": None, "high": None, "n": 0}, "interval", "96.10 %"),
        (1234567, "count", "1,234,567"),
        (0.000123456, "number", "0.0001235"),
        (9999.6, "number", "10,000"),
        (-9999.5, "number", "-10,000"),
        (9999.4, "number", "9999"),
        (75, "duration", "1:15"),
    ],
)
def test_formats(value: object, form: str, text: str) -> None:
    assert as_format(value, form) == text


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("white", [1.0, 4000.0])
def test_thumbnails_of_floats_go_from_black_to_white(white: float) -> None:
    values = np.array([[-0.2 * white, 0.0, np.nan], [white / 2, np.inf, white]], dtype=np.float32)
    assert np.asarray(decoded(thumbnail(Image.fromarray(values)))).tolist() == [[0, 0, 0], [128, 0, 255]]


@pytest.mark.parametrize("size", [(640, 480), (300, 900)])
def test_thumbnails_keep_the_shape(size: Sequence[int], tmp_path: Path) -> None:
    Image.new("RGB", (size[0], size[1]), (200, 30, 30)).save(tmp_path / "a.jpg")
    uri = thumbnail(tmp_path / "a.jpg", side=96)
    image = decoded(uri)
    assert max(image.size) == 96
    assert image.size[0] / image.size[1] == pytest.approx(size[0] / size[1], rel=0.03)
    assert not uri.is_small
    assert np.asarray(image).mean((0, 1)) == pytest.approx([200, 30, 30], abs=4)


def test_small_images_are_kept_bit_by_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    uri = thumbnail(pixels)
    assert uri.is_small
    assert (np.asarray(decoded(uri)) == pixels).all()


def test_images_of_sixteen_bits_are_not_white() -> None:
    image = Image.fromarray(np.linspace(0, 40_000, 64 * 64).reshape(64, 64).astype(np.uint16))
    values = np.asarray(decoded(thumbnail(image)))
    assert (values.min(), values.max()) == (0, 255)
    assert 100 < values.mean() < 155


def test_figures_are_equal_and_follow_the_page() -> None:
    def draw(figure: object) -> None:
        axes = figure.subplots()  # type: ignore[attr-defined]
        axes.plot([1, 2, 3], label="Größe 图 $5")
        axes.plot([1, 2], color=INK, label=f"ink is {INK}")
        axes.legend()

    first, second = svg(4, 3, draw), svg(4, 3, draw)
    assert first == second
    assert first.startswith("<svg")
    assert "currentColor" in first
    assert "Größe 图 $5" in first  # text stays text
    assert f"ink is {INK}" in first  # also where it is the name of a colour
    assert first.count(INK) == 1
