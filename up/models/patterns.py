"""Picking tensors by name, as ``freeze_patterns`` and ``saver.skip`` do: by prefix or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from up.errors import UserError
from up.text import did_you_mean

Matcher = Callable[[str], bool]


def matcher(pattern: str, *, key: str) -> Matcher:
    """The test that one pattern stands for.

    ``backbone.layer1`` means that name and all below it, not ``backbone.layer10``; ``r:bn\\d`` is searched for anywhere
    in a name. ``key`` is where the user wrote the pattern. Raises ``UserError`` for a broken expression.
    """
    if not pattern.startswith("r:"):
        prefix = pattern.rstrip(".")
        return lambda name: name == prefix or name.startswith(prefix + ".")
    try:
        expression = re.compile(pattern[2:])
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression ({error}).", key=key) from None
    return lambda name: expression.search(name) is not None


def any_of(patterns: Sequence[str], *, key: str) -> Matcher:
    """Whether a name fits at least one of the patterns."""
    matchers = [matcher(pattern, key=key) for pattern in patterns]
    return lambda name: any(fits(name) for fits in matchers)


def require_matches(patterns: Sequence[str], names: Iterable[str], *, key: str) -> None:
    """Raise ``UserError`` with near names for the first pattern that fits none of the tensors called ``names``."""
    known = list(names)
    for pattern in patterns:
        if not any(map(matcher(pattern, key=key), known)):
            near = did_you_mean(pattern.removeprefix("r:").rstrip("."), with_parents(known))
            raise UserError(
                f"{pattern!r} matches nothing.{near} Expected the beginning of a name, such as "
                f"{known[0] if known else 'backbone.conv1'!r}, up to a dot; or r: and a regular expression.",
                key=key,
            )


def with_parents(names: Iterable[str]) -> list[str]:
    """The names and every module that they lie in: ``a.b.c`` gives ``a``, ``a.b``, ``a.b.c``."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        found.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(found)
