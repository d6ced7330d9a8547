"""Meta files of lines that are all of one plain form: read by arrays, a block of lines at a time, where a loop takes seconds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from up.data.keyed_lines import is_text

_DIGITS = 9  # of a label; more are left to the check of each line
_NEWLINE, _ZERO = ord("\n"), ord("0")
BLOCK = 1 << 19  # bytes: its arrays stay in the processor's cache
_COUNTED = np.arange(BLOCK)


class PlainLines(NamedTuple):
    """Names of a block of lines, one after another, with the end of each (N,), and the labels (N,)."""

    names: NDArray[np.uint8]
    ends: NDArray[np.int64]
    labels: NDArray[np.int64]


class Form(NamedTuple):
    """A line: ``before``, a name, ``between``, a label, ``after``; and the number of quotes in it."""

    before: bytes
    between: bytes
    after: bytes
    quotes: int | None = None


PATH_LABEL = Form(b"", b" ", b"")
JSON_LABEL = (Form(b'{"filename": "', b'", "label": ', b"}", 6), Form(b'{"filename":"', b'","label":', b"}", 6))


def plain_lines(block: bytes, form: Form) -> PlainLines | None:
    """Read whole lines; None unless each is of this ``form``, without anything in its name that needs a closer look."""
    if not block.endswith(b"\n") or b"\\" in block or not is_text(block):
        return None
    levels = np.frombuffer(block, np.uint8)
    ends, dots = np.flatnonzero(levels == _NEWLINE), levels == ord(".")
    quotes = 0 if form.quotes is None else np.count_nonzero(levels == ord('"')) - form.quotes * len(ends)
    if quotes or np.count_nonzero(levels < 32) > len(ends) or (dots[1:] & dots[:-1]).any():
        return None
    first = np.append(0, ends[:-1] + 1)
    labels, digits = _labels_before(levels, ends - len(form.after), leading_zeros=form.quotes is None)
    start, stop = first + len(form.before), ends - len(form.after) - digits - len(form.between)
    if digits.min() == 0 or digits.max() > _DIGITS or (stop <= start).any():
        return None
    there = ((first, form.before), (stop, form.between), (ends - len(form.after), form.after))
    if not all(_has(levels, at, text) for at, text in there):
        return None
    if (levels[start] == ord("/")).any() or (levels[stop - 1] == ord(" ")).any():
        return None
    sizes = stop - start
    last = np.cumsum(sizes)
    places = np.repeat(start - last + sizes, sizes)
    places += _COUNTED[: last[-1]] if last[-1] <= len(_COUNTED) else np.arange(last[-1])
    return PlainLines(levels[places], last, labels)


def _has(levels: NDArray[np.uint8], at: NDArray[np.int64], text: bytes) -> bool:
    """Whether ``text`` is at every place; eight bytes at a time."""
    words: NDArray[np.uint64] = np.ndarray((max(0, len(levels) - 7),), "<u8", levels, strides=(1,))
    offsets = sorted({*range(0, len(text) - 7, 8), len(text) - 8}) if len(text) >= 8 else []
    if offsets:
        return all(bool((words[at + each] == np.frombuffer(text, "<u8", 1, each)).all()) for each in offsets)
    return all(bool((levels[at + each] == byte).all()) for each, byte in enumerate(text))


def _labels_before(
    levels: NDArray[np.uint8], end: NDArray[np.int64], *, leading_zeros: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the whole numbers that end before ``end`` (N,): their values and numbers of digits, 0 where there is none."""
    values, digits = np.zeros(len(end), np.int64), np.zeros(len(end), np.int64)
    going, top = np.ones(len(end), bool), np.zeros(len(end), np.uint8)
    for power in range(_DIGITS + 1):
        digit = levels[np.maximum(end - 1 - power, 0)] - np.uint8(_ZERO)  # others wrap around to more than 9
        going &= digit <= 9
        if not going.any():
            break
        digits += going
        digit *= going
        values += np.multiply(digit, 10**power, dtype=np.int64)
        np.copyto(top, digit, where=going)
    if not leading_zeros:
        digits[(top == 0) & (digits > 1)] = 0
    return values, digits
