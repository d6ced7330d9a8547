"""Assertions on what a message says rather than on how it says it: values, names, keys, files, lines, words of the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable


def facts(*parts: object) -> re.Pattern[str]:
    """A pattern for ``pytest.raises(match=…)``: each of ``parts`` occurs, in any order."""
    looked_for = (rf"(?<!\w){re.escape(text)}" if text[:1].isdigit() else re.escape(text) for text in map(str, parts))
    return re.compile("".join(rf"(?=.*{part})" for part in looked_for), re.S)


def tells(text: object, *parts: object) -> bool:
    """Whether ``text``, or one line of several, has each of ``parts``."""
    lines = text if isinstance(text, Iterable) and not isinstance(text, str) else [text]
    return any(facts(*parts).search(str(line)) for line in lines)


def each_tells(lines: Iterable[object], *expected: Iterable[object]) -> bool:
    """Whether there are as many ``lines`` as tuples of facts, and each line has those of its tuple."""
    listed = list(lines)
    return len(listed) == len(expected) and all(tells(str(line), *parts) for line, parts in zip(listed, expected, strict=True))
