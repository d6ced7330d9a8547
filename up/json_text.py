"""JSON that programs in any language read: without NaN and infinity, which are written as null and read back as NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from up.types import Json, Record


def json_text(
    value: Json, *, indent: int | None = None, compact: bool = False, default: Callable[[object], Json] | None = None
) -> str:
    """Return ``value`` as JSON, with null for numbers that are not finite; tuples, paths and NumPy's numbers may be in it.

    ``compact`` leaves out the spaces; ``default`` converts values of other types. Raises ``TypeError`` for those without it.
    """
    separators = (",", ":") if compact else None
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, separators=separators, allow_nan=False, default=default)
    except (TypeError, ValueError):  # of what JSON lacks; looking for it first would cost more than writing
        return json.dumps(plain(value), indent=indent, ensure_ascii=False, separators=separators, allow_nan=False, default=default)


def json_list(entries: Iterable[Json]) -> Iterator[str]:
    """Yield the text of an indented JSON list piece by piece, so that it is never in memory as a whole."""
    before = "[\n  "
    for each in entries:
        yield before + json_text(each, indent=2).replace("\n", "\n  ")
        before = ",\n  "
    yield "[]\n" if before.startswith("[") else "\n]\n"


def plain(value: Json) -> Json:
    """Convert tuples, paths and NumPy's numbers and arrays to what JSON has; numbers that are not finite become None."""
    match value:
        case Mapping():
            return {str(name): plain(each) for name, each in value.items()}
        case str() | bool() | None:
            return value
        case int() | float():
            return value if math.isfinite(value) else None
        case Sequence():
            return [plain(each) for each in value]
        case Path():
            return str(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def records_in(path: Path) -> list[tuple[str, Record]]:
    """Read the JSON objects on the lines of a file, each with its text, without lines that were cut off. Raises ``OSError``."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines() splits at U+2028 in a name, too
        with suppress(ValueError):
            record: object = json.loads(line)
            if isinstance(record, dict):
                found.append((line, record))
    return found


def with_nan(record: Mapping[str, Json]) -> Record:
    """Return ``record``, whose values are numbers and names, with NaN for null."""
    return {name: math.nan if value is None else value for name, value in record.items()}
