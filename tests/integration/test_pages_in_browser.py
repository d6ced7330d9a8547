"""Pages in a browser: sorted tables, enlarged images, the keyboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.harness.browser import browser, check_page, opened
from up.pages.images import svg, thumbnail
from up.pages.page import write_page

pytestmark = pytest.mark.slow
TEMPLATE = """{% extends "pages/base.html" %}
{% block body %}
{{ parts.section("numbers", "Numbers") }}
{{ parts.cards([{"label": "top1", "value": "96.10 %", "note": "93.6–97.7, n = 359"}, {"label": "time", "value": "1:15"}]) }}
{{ parts.notice("Trained on " ~ "a long word " * 30) }}
{{ parts.table([{"key": "name", "label": "class"}, {"key": "share", "label": "recall", "format": "interval"},
  {"key": "text", "label": "text"}], content.rows, "classes") }}
{{ parts.bars([{"name": "cat", "share": 0.8, "text": "80 %"}, {"name": "dog", "share": 0.2, "text": "20 %", "tone": "wrong"}]) }}
{{ parts.section("images", "Images") }}
{{ parts.gallery(content.images, figures) }}
{{ parts.plot(figures.plot, "A plot") }}
{{ parts.command("python -m up train " ~ "x" * 300) }}
{% endblock %}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every building block."""
    import jinja2

    from up.pages import page

    folder = tmp_path_factory.mktemp("page")
    (folder / "all.html").write_text(TEMPLATE)
    loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder), page._environment().loader])  # type: ignore[list-item]
    page._environment().loader, before = loader, page._environment().loader
    draw = np.random.default_rng(0)
    figures: dict[str, str] = {str(at): thumbnail(draw.integers(0, 256, (8 + 90 * at, 8, 3), dtype=np.uint8)) for at in range(3)}
    figures["plot"] = svg(5, 3, lambda figure: figure.subplots().plot([1, 3, 2]))
    rows = [
        {"name": "cat", "share": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 10}, "text": "b " * 60},
        {"name": "dog", "share": {"value": 0.1, "low": 0.05, "high": 0.2, "n": 12}, "text": "a"},
        {"name": "none", "share": None, "text": "c"},
        {"name": "eel", "share": {"value": 0.5, "low": 0.2, "high": 0.8, "n": 7}, "text": ""},
    ]
    images = [{"images": [str(at)], "title": f"image {at}", "lines": ["a/very/long/path" * 8]} for at in range(3)]
    write_page(folder, "page", "all.html", {"title": "All parts", "rows": rows, "images": images}, figures)
    page._environment().loader = before
    return folder / "page.html"


def test_every_part_is_readable_at_every_width(path: Path) -> None:
    with browser() as started:
        check_page(started, path, path.parent)


def test_tables_sort_by_keyboard_with_missing_values_last(path: Path) -> None:
    with browser() as started, opened(started, path.as_uri()) as page:
        names = "() => [...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
        heading = page.locator("th button").nth(1)
        heading.focus()
        page.keyboard.press("Enter")
        assert page.evaluate(names) == ["cat", "eel", "dog", "none"]
        page.keyboard.press("Enter")
        assert page.evaluate(names) == ["dog", "eel", "cat", "none"]
        assert page.locator("th").nth(1).get_attribute("aria-sort") == "ascending"


def test_images_open_large_and_arrow_keys_go_on(path: Path) -> None:
    with browser() as started, opened(started, path.as_uri()) as page:
        button = page.locator(".gallery button").first
        button.focus()
        page.keyboard.press("Enter")
        dialog = page.locator("dialog[open]")
        assert "image 0" in dialog.inner_text()
        page.keyboard.press("ArrowRight")
        assert "image 1" in dialog.inner_text()
        page.keyboard.press("Escape")
        assert dialog.count() == 0
        assert page.evaluate("() => document.activeElement.matches('.gallery button')")
