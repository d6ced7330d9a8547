"""Report on probable label errors: a page, JSON, and a CSV file that ``on_bad_label: drop-list`` reads."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

from up.csv_text import write_rows
from up.data_report.confident import label_issues
from up.data_report.out_of_sample import OutOfSample
from up.files import make_folder, write_text
from up.pages.images import thumbnail_if_readable
from up.pages.page import write_page
from up.tasks.cls.evaluate.predictions import UNREADABLE
from up.types import Record

COLUMNS = ("filename", "given", "suggested", "self_confidence", "suggested_probability", "where")
_PICTURED = 300  # images with a thumbnail
_PAIRS = 20  # pairs of classes


def issues_of(found: OutOfSample) -> Record:
    """Find the label errors and return the report as plain values, the least self-confident image first."""
    issues = label_issues(found.labels, found.probabilities)
    is_read = issues.suggested != UNREADABLE
    rows = [
        {
            "filename": found.names[index],
            "given": found.classes[found.labels[index]],
            "suggested": found.classes[issues.suggested[index]],
            "self_confidence": float(issues.self_confidence[index]),
            "suggested_probability": float(found.probabilities[index, issues.suggested[index]]),
            "where": found.where[index],
            "path": found.paths[index],
            "figure": None,
        }
        for index in issues.found.tolist()
    ]
    pairs = Counter((row["given"], row["suggested"]) for row in rows)
    return {
        "title": "Label errors",
        "source": found.source,
        "images": int(is_read.sum()),
        "not_finite": int((~is_read).sum()),
        "correct": int((issues.suggested == found.labels).sum()),
        "noise": issues.noise,
        "issues": rows,
        "pairs": [{"given": pair[0], "suggested": pair[1], "images": number} for pair, number in pairs.most_common(_PAIRS)],
        "classes": [
            {"class": name, "images": int((found.labels[is_read] == at).sum()), "threshold": float(issues.thresholds[at])}
            for at, name in enumerate(found.classes)
        ],
        "confident_joint": issues.joint.tolist(),
        "calibrated_joint": issues.calibrated.tolist(),
    }


def write_issues(report: Record, folder: Path) -> list[Path]:
    """Write ``issues.json``, ``issues.html`` and ``issues.csv`` into ``folder``; returns the files."""
    make_folder(folder)
    text = io.StringIO()
    write_rows(text, [COLUMNS, *([row[name] for name in COLUMNS] for row in report["issues"])])
    write_text(folder / "issues.csv", text.getvalue())
    figures: dict[str, str] = {}
    for at, row in enumerate(report["issues"][:_PICTURED]):
        if (uri := thumbnail_if_readable(row["path"], 128)) is not None:  # None for images of some readers
            figures[f"issue-{at}"] = uri
            row["figure"] = f"issue-{at}"
    return [folder / "issues.csv", *write_page(folder, "issues", "data_report/issues.html", report, figures)]
