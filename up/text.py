"""Text of messages: near names, short lists, numbers with units."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from os.path import commonprefix


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the three names in ``known`` nearest to ``name``, best first, ignoring case and the dashes of flags.

    Of equally near names, those with the longest common beginning come first: typing errors are more often late.
    """
    meant, by_lower = name.lower().lstrip("-"), {candidate.lower().lstrip("-"): candidate for candidate in known}
    near = get_close_matches(meant, list(by_lower), n=len(by_lower) or 1, cutoff=0.6)

    def nearness(candidate: str) -> tuple[float, int]:
        return round(SequenceMatcher(None, candidate, meant).ratio(), 6), len(commonprefix([candidate, meant]))

    return [by_lower[match] for match in sorted(near, key=nearness, reverse=True)[:3]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'a', 'b'?`` (with the leading space), or an empty text if no name is near."""
    near = near_names(name, known)
    return f" Did you mean {', '.join(repr(candidate) for candidate in near)}?" if near else ""


def some_of(names: Iterable[object], limit: int = 10) -> str:
    """Join names: ``a, b, c and 4 more``."""
    listed = [str(name) for name in names]
    shown = ", ".join(listed[:limit])
    return f"{shown} and {len(listed) - limit} more" if len(listed) > limit else shown


def unused_name(name: str, taken: Container[str], separator: str = "-") -> str:
    """Return ``name``, or if it is taken the first of ``name-2``, ``name-3``, … that is not."""
    numbered = (f"{name}{separator}{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def count(number: float, noun: str) -> str:
    """Count a noun: ``1 image``, ``1,797 images``, ``0 classes``, ``2 entries``."""
    return f"{number:,} {noun if number == 1 else _plural(noun)}"


def with_article(noun: str) -> str:
    """Put an article before a noun: ``an optimizer``, ``a loss``."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) and noun != "epoch" else f"{noun}s"


def si(number: float, digits: int = 2) -> str:
    """Write ``25557032`` as ``25.56M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.{digits}f}{unit}"
    return f"{number:g}"


def size_text(number: float) -> str:
    """Format a number of bytes, such as ``2.58 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def duration(seconds: float) -> str:
    """Write ``75`` seconds as ``1:15``, ``3725`` as ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Verbatim(str):
    """Text that messages show unchanged; other text is shown in quotes."""


_LONGEST = 60  # characters of a value in a message


def shortened(text: str, limit: int = _LONGEST) -> str:
    """Cut ``text`` to ``limit`` characters, the last an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shown(value: object) -> str:
    """Write ``value`` as YAML does; of large values, the shape."""
    if isinstance(value, Verbatim):
        return str(value)
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, Mapping):
        text = f"a block ({some_of(value, 4)})" if value else "an empty block"
    elif isinstance(value, Sequence):
        text = f"a list of {len(value)}"
        if all(isinstance(item, str | int | float | bool | None) for item in value) and len(str(value)) < _LONGEST:
            text = f"[{', '.join(shown(item) for item in value)}]"
    else:
        text = _scalar(value)
    return shortened(text)


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return str(value)


def yaml_text(value: object) -> str:
    """Write the text of ``value``, such as a path, as a YAML scalar that loads as the same text: quoted where needed."""
    import yaml  # here, because most users of this module need no YAML

    text = str(value)
    if re.fullmatch(r"[\w/.-]+", text) and not _is_number(text) and yaml.safe_load(text) == text:
        return text
    return json.dumps(text, ensure_ascii=False)  # YAML does not decode JSON's surrogate pairs (\ud83d\ude00)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
