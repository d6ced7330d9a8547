"""Text that is no YAML: the line to correct, which need not be the one that the parser reports, and how to correct it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import yaml

from up.text import count, shortened

_HINTS = {
    "mapping values are not allowed in this context": " (quote text that contains ': ', or correct the indentation)",
    "found character that cannot start any token": " (quote text that begins with this character)",
}
_MISPLACED = ("did not find expected key", "did not find expected '-' indicator", "mapping values are not allowed in this context")
_EQUALS = re.compile(r"\s*(?:- +)?[A-Za-z_]\w*\s*=\s*[^=\s]")  # momentum=0.9
_OPENS = re.compile(r"(?:^|[\s:\[{,-])([\"'])(?=[^\s])")
_KEY = re.compile(r"\s*(?:- +)*[\w.\"'@-]+\s*:(\s|$)")


class SyntaxFault(NamedTuple):
    """A line and column, both from 1, with what is wrong there and how to correct it."""

    line: int
    column: int
    what: str


def fault_of(error: yaml.MarkedYAMLError, text: str) -> SyntaxFault:
    """Find the line to correct for an ``error`` of the parser."""
    problem, context = error.problem or "", error.context or ""
    at = error.problem_mark or error.context_mark
    assert at is not None
    lines = text.splitlines()
    line = lines[at.line] if at.line < len(lines) else ""
    if "\t" in (line[at.column : at.column + 1], *line[: len(line) - len(line.lstrip())]):
        return SyntaxFault(at.line + 1, at.column + 1, "got a tab in the indentation, expected spaces")
    found = (
        _open_quote(lines, at.line)
        or equals_sign(lines, range(max(0, at.line - 2), min(at.line + 1, len(lines))))
        or (_misplaced(lines, at.line) if problem in _MISPLACED else None)
        or (_no_colon(lines, error.context_mark.line) if "simple key" in context and error.context_mark else None)
    )
    if found is not None:
        return found
    since = f" {context} that begins in line {error.context_mark.line + 1}" if context and error.context_mark else ""
    return SyntaxFault(at.line + 1, at.column + 1, f"not valid YAML: {problem}{since}{_HINTS.get(problem, '')}")


def fault_of_scalar(lines: list[str], first: int, last: int, quoted: bool) -> SyntaxFault | None:
    """Check one value that spans lines ``first`` to ``last``, counted from 0, and is YAML; None if it is as intended.

    A quote that the next quote closes hides the keys between; a line without a colon becomes part of the value above.
    """
    below = range(first + 1, min(last + 1, len(lines)))
    if quoted:
        return _quote_at(lines, first) if any(_KEY.match(lines[number]) for number in below) else None
    return equals_sign(lines, below)


def equals_sign(lines: list[str], numbers: Iterable[int]) -> SyntaxFault | None:
    """Check the lines ``numbers``, counted from 0, for ``key=value`` where ``key: value`` is meant."""
    for number in numbers:
        found = _EQUALS.match(lines[number])
        if found and not _KEY.match(lines[number]):
            written, column = lines[number].strip().rstrip(","), _indent(lines[number]) + 1
            said = f"got {written!r}, expected KEY: VALUE."
            if number and "#" in lines[number - 1] and written.count(")") > written.count("("):
                return SyntaxFault(number + 1, column, f"{said} It ends the comment of line {number}: write # before it.")
            pairs = re.split(r"[,\s]+(?=\w+\s*=)", written.removeprefix("- "))
            mended = " and ".join(re.sub(r"\s*=\s*", ": ", pair, count=1) for pair in pairs)
            alone = ", each on its own line" if len(pairs) > 1 else ""
            return SyntaxFault(number + 1, column, f"{said} Write {mended}{alone}.")
    return None


def _open_quote(lines: list[str], last: int) -> SyntaxFault | None:
    """The first line up to ``last`` with a quote that is not closed on it; quoted text over several lines is rare."""
    for number, line in enumerate(lines[: last + 1]):
        if _KEY.match(line) and _is_left_open(line):
            return _quote_at(lines, number)
    return None


def _is_left_open(line: str) -> bool:
    quote, before = "", " "
    for letter in line:
        if quote:
            quote = "" if letter == quote and not (quote == '"' and before == "\\") else quote
        elif letter in "\"'" and before in " \t:[{,-":
            quote = letter
        elif letter == "#" and before in " \t":
            break
        before = letter
    return bool(quote)


def _quote_at(lines: list[str], number: int) -> SyntaxFault:
    line = lines[number]
    opened = _OPENS.search(line)
    column = opened.start(1) if opened else 0
    stops = "[,\\]}]" if re.search(r"[\[{]", line[:column]) else r"\s#"
    text = re.split(stops, line[column + 1 :], maxsplit=1)[0].strip(" \"'")
    mended = f"{line[column]}{text}{line[column]}"
    return SyntaxFault(number + 1, column + 1, f"a quote is opened here and never closed. Close it on this line: {mended}")


def _no_colon(lines: list[str], number: int) -> SyntaxFault:
    text = lines[number].strip()
    return SyntaxFault(
        number + 1, 1, f"got {shortened(text)!r}, expected KEY: VALUE. Add the colon and the value, or remove the line."
    )


def _misplaced(lines: list[str], number: int) -> SyntaxFault | None:
    """Check for indentation that no block above has."""
    if number >= len(lines) or not (_KEY.match(lines[number]) or lines[number].lstrip().startswith("- ")):
        return None
    indent, is_entry = _indent(lines[number]), lines[number].lstrip().startswith("- ")
    levels = _levels_above(lines, number)
    if not levels or any(level == (indent, is_entry) for level, _ in levels):
        return None
    alike = [(level, where) for level, where in levels if level[1] == is_entry] or levels
    (wanted, _), where = min(alike, key=lambda each: (abs(each[0][0] - indent), -each[1]))
    own, right = count(indent, "space"), count(wanted, "space")
    got = f"{own} of indentation, expected {wanted} as" if wanted != indent else "a list entry between keys, expected a key as"
    what = f"got {got} in line {where + 1}. Indent this line, and those that belong to it, by {right}."
    return SyntaxFault(number + 1, indent + 1, what)


def _levels_above(lines: list[str], number: int) -> list[tuple[tuple[int, bool], int]]:
    """The blocks that are open above a line: their indentation, whether they are lists, and their last line."""
    levels: list[tuple[tuple[int, bool], int]] = []
    lowest = None
    for at in range(number - 1, -1, -1):
        line = lines[at]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent, is_entry = _indent(line), line.lstrip().startswith("- ")
        if lowest is not None and indent >= lowest:
            continue
        if is_entry:
            inner = indent + len(line.lstrip()) - len(line.lstrip()[1:].lstrip())
            if lowest is None or inner < lowest:
                levels.append(((inner, False), at))
        levels.append(((indent, is_entry), at))
        lowest = indent
        if not indent:
            break
    return levels


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
