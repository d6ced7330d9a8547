"""Write a report on data as JSON and as a page with thumbnails of the images that it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from up.files import make_folder
from up.pages.images import thumbnail_if_readable
from up.pages.page import write_page
from up.types import Record

_GROUPS, _IMAGES = 24, 4  # of a finding, with thumbnails
_SIDE = 128


def write_report(report: Record, folder: Path) -> list[Path]:
    """Write ``data_report.json`` and ``data_report.html`` into ``folder``; returns the files."""
    make_folder(folder)
    figures: dict[str, str] = {}
    for image in _shown(report):
        if (uri := thumbnail_if_readable(image["path"], _SIDE)) is not None:
            image["figure"] = f"image-{len(figures)}"
            figures[image["figure"]] = uri
    return write_page(folder, "data_report", "data_report/check.html", report, figures)


def _shown(report: Record) -> Iterator[Record]:
    for finding in report["findings"]:
        for group in finding["groups"][:_GROUPS]:
            yield from group["images"][:_IMAGES]
