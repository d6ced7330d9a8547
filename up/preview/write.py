"""Pages of this room to files."""

from __future__ import annotations

from pathlib import Path

from up.figures import missing_matplotlib
from up.files import make_folder
from up.pages.images import svg
from up.pages.page import write_page
from up.preview.content import PreviewPage
from up.preview.timeline import draw_timeline, lanes_of


def write_preview(folder: Path, page: PreviewPage) -> list[Path]:
    """Write ``preview.html`` and ``preview.json``, and return their paths."""
    figures = dict(page.images)
    if missing_matplotlib("the timeline") is None:
        content = page.content["timeline"]
        figures["timeline"] = svg(9, 3 + 0.35 * lanes_of(content), draw_timeline(content))
    make_folder(folder)
    return write_page(folder, "preview", "preview/preview.html", page.content, figures)


def write_replay(folder: Path, page: PreviewPage) -> list[Path]:
    """Write ``replay.html`` and ``replay.json``, and return their paths."""
    make_folder(folder)
    return write_page(folder, "replay", "preview/replay.html", page.content, page.images)
