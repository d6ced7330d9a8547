"""Report on the images of data sets: their numbers and sizes, and the findings."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from up.data_report.faults import findings
from up.data_report.images import CheckedImages
from up.errors import Problem
from up.types import Record

_CLASSES = 1000  # listed


def report_of(images: CheckedImages, problems: Sequence[Problem], began: float) -> Record:
    """Return the whole report as plain values: the data sets, their classes, and the findings."""
    found = findings(images, problems)
    counts = images.counts
    names = images.classes.names
    listed = sorted(range(len(names)), key=lambda label: -int(counts[:, label].sum()))[:_CLASSES]
    errors, warnings, notes = (
        sum(finding["count"] for finding in found if finding["severity"] == severity) for severity in ("error", "warning", "note")
    )
    return {
        "title": "Data report",
        "images": len(images),
        "splits": [_split(images, number) for number in range(len(images.sources))],
        "classes": [
            {"class": names[label], **{each.name: int(counts[at, label]) for at, each in enumerate(images.sources)}}
            for label in listed
        ],
        "classes_left_out": len(names) - len(listed),
        "findings": found,
        "errors": errors,
        "warnings": warnings,
        "notes": notes,
        "exit_code": 2 if errors else 0,
        "max_distance": images.max_distance,
        "seconds": time.time() - began,
    }


def _split(images: CheckedImages, number: int) -> Record:
    source, chosen, records = images.sources[number], np.flatnonzero(images.source == number), images.records
    readable = np.array([index for index in chosen.tolist() if index not in records.faults], np.int64)
    counted = images.counts[number]
    filled = counted[counted > 0]

    def spread(values: NDArray[np.int64] | NDArray[np.int32]) -> Record | None:
        if not len(readable):
            return None
        found = values[readable]
        return {"min": int(found.min()), "median": float(np.median(found)), "max": int(found.max())}

    modes, formats = (Counter(values[index] for index in readable.tolist()) for values in (records.modes, records.formats))
    width, height = spread(records.width), spread(records.height)
    return {
        "name": source.name,
        "from": [os.path.relpath(path) if not path.startswith("..") else path for path in source.files.paths],
        "images": len(chosen),
        "samples": int(images.times[chosen].sum()),
        "bytes": int(records.bytes[chosen].sum()),
        "unreadable": len(chosen) - len(readable),
        "labelled": source.labels is not None,
        "classes": len(filled),
        "largest_class": int(filled.max()) if len(filled) else 0,
        "smallest_class": int(filled.min()) if len(filled) else 0,
        "width": width,
        "height": height,
        "pixels": _sizes(width, height),
        "file_bytes": spread(records.bytes),
        "modes": dict(modes.most_common()),
        "formats": dict(formats.most_common()),
        "kinds": ", ".join(f"{name} {number:,}" for found in (modes, formats) for name, number in found.most_common(4) if name),
    }


def _sizes(width: Record | None, height: Record | None) -> str:
    """Describe the sizes of images: the median, and the range of sides where they differ."""
    if width is None or height is None:
        return ""
    low, high = min(width["min"], height["min"]), max(width["max"], height["max"])
    is_one = width["min"] == width["max"] and height["min"] == height["max"]
    return f"{width['median']:g} x {height['median']:g}{'' if is_one else f' (sides {low:,} to {high:,})'}"
