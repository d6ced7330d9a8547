"""Meta files of JSON objects that all have the keys of the first one: read by a regular expression, a block at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_STRING = rb'"[^"\\\x00-\x1f]*"'
_NUMBER = rb"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,18})?(?:[eE][+-]?\d{1,3})?"
_SCALAR = rb"(?:" + _STRING + rb"|" + _NUMBER + rb"|true|false|null)"
_IGNORED = rb"(?:" + _SCALAR + rb"|\[ *(?:" + _SCALAR + rb"(?: *, *" + _SCALAR + rb")*)? *\])"
_READ = {"filename": rb'"([^"\\\x00-\x1f]+)"', "label": rb"(0|[1-9]\d{0,8})"}


class KeyedLines(NamedTuple):
    """Names and labels (N,) of a block of lines, and the keys of each line in their order."""

    names: list[bytes]
    labels: NDArray[np.int64]
    keys: Sequence[str]


def keyed_lines(block: bytes) -> KeyedLines | None:
    """Read whole lines; None unless each is an object with ``filename``, ``label`` and the other keys of the first, in its order.

    The label is a whole number; the other values are strings, numbers, true, false, null, or lists of these. Names are not checked.
    """
    keys = _keys_of(block[: block.find(b"\n") + 1])
    if keys is None or not block.endswith(b"\n") or b"\\" in block or not is_text(block):
        return None
    pattern, is_name_first = _pattern(keys), keys.index("filename") < keys.index("label")
    pairs = pattern.findall(block)
    if len(pairs) != block.count(b"\n"):
        return None
    names, labels = zip(*pairs, strict=True) if is_name_first else zip(*((name, label) for label, name in pairs), strict=True)
    return KeyedLines([*names], np.array([*map(int, labels)], np.int64), keys)


def is_text(block: bytes) -> bool:
    """Check whether bytes are UTF-8."""
    try:
        return block.isascii() or bool(block.decode())
    except UnicodeDecodeError:
        return False


def _keys_of(line: bytes) -> tuple[str, ...] | None:
    """Return the keys of an object; None where it lacks one that is read, or has one twice."""
    try:
        record: object = json.loads(line, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, tuple) or not record:  # an object becomes a tuple of pairs; any other value is another type
        return None
    keys = tuple(key for key, _ in record)
    return keys if set(_READ) <= set(keys) and len(set(keys)) == len(keys) else None


@cache
def _pattern(keys: tuple[str, ...]) -> re.Pattern[bytes]:
    """Match a whole line: any spaces between its parts, and no part spans a line."""
    members = (re.escape(json.dumps(key, ensure_ascii=False).encode()) + rb" *: *" + _READ.get(key, _IGNORED) for key in keys)
    return re.compile(rb"^ *\{ *" + rb" *, *".join(members) + rb" *\}[ \t\r]*\n", re.MULTILINE)
