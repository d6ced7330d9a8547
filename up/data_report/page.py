"""Write a report as JSON and as a page with thumbnails."""

from __future__ import annotations

from pathlib import Path

from up.files import make_folder, write_json
from up.types import Record


def write_report(report: Record, folder: Path) -> list[Path]:
    """Write ``data_report.json`` and ``data_report.html`` into ``folder``; returns the files."""
    make_folder(folder)
    write_json(folder / "data_report.json", report)
    return [folder / "data_report.json"]
