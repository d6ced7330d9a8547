"""Select tensors by name, for ``freeze_patterns`` and ``saver.skip``: by prefix or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from up.errors import UserError
from up.text import did_you_mean

Matcher = Callable[[str], bool]


def matcher(pattern: str, *, key: str) -> Matcher:
    """Compile a pattern to a test of names.

    ``backbone.layer1`` means that name and all below it, not ``backbone.layer10``; ``r:bn\\d`` is searched for anywhere
    in a name. ``key`` is the key of the pattern in the YAML. Raises ``UserError`` for an invalid expression.
    """
    if not pattern.startswith("r:"):
        prefix = pattern.rstrip(".")
        return lambda name: name == prefix or name.startswith(prefix + ".")
    try:
        expression = re.compile(pattern[2:])
    except re.error as error:
        raise UserError(f"{pattern!r} is not a regular expression ({error}).", key=key) from None
    return lambda name: expression.search(name) is not None


def any_of(patterns: Sequence[str], *, key: str) -> Matcher:
    """Compile patterns to a test whether a name fits at least one."""
    matchers = [matcher(pattern, key=key) for pattern in patterns]
    return lambda name: any(fits(name) for fits in matchers)


def require_matches(patterns: Sequence[str], names: Iterable[str], *, key: str) -> None:
    """Raise ``UserError`` with near names for the first pattern that fits none of the ``names`` of tensors."""
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
    """List the names and the modules around them: ``a.b.c`` gives ``a``, ``a.b``, ``a.b.c``."""
    return list(dict.fromkeys(parent for name in names for parent in parents_of(name)))


def parents_of(name: str) -> list[str]:
    """List ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
