"""Pages: one HTML file without any other, and a JSON file with the same content."""

from __future__ import annotations

import html
import json
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from up.files import write_text
from up.json_text import json_text, plain
from up.text import duration, size_text
from up.types import Json

if TYPE_CHECKING:
    from jinja2 import Environment

_PACKAGE = Path(__file__).resolve().parents[1]
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>', re.DOTALL)


def missing_jinja(owner: str) -> str | None:
    """Say what to install for ``owner`` to write its page; None if jinja2 is installed."""
    if find_spec("jinja2") is not None:
        return None
    return f"{owner} needs jinja2, which is not installed. Install it: pip install -e '.[viz]'"


def write_page(
    folder: Path, stem: str, template: str, content: Mapping[str, Json], figures: Mapping[str, str] | None = None
) -> list[Path]:
    """Write ``STEM.json`` and ``STEM.html``, and return their paths.

    ``template`` is relative to the package, such as ``report/run.html``; it extends ``pages/base.html`` and sees ``content`` as
    the JSON file has it, so that a page shows nothing that the file lacks, and ``figures``: data URIs of ``thumbnail``, texts of
    ``svg``. Without jinja2 the JSON file alone is written, with a warning. Numbers that are not finite become null.
    Raises ``StorageError``.
    """
    text = json_text(plain(content), indent=1)
    written = [folder / f"{stem}.json"]
    write_text(written[0], _writable(text) + "\n")
    if (line := missing_jinja(f"{stem}.html")) is not None:
        warnings.warn(line, stacklevel=2)
        return written
    written.append(folder / f"{stem}.html")
    write_text(written[1], _writable(render(template, json.loads(text), figures or {}, json_name=written[0].name)))
    return written


def render(template: str, content: Mapping[str, Json], figures: Mapping[str, str], *, json_name: str) -> str:
    """Return the HTML of a page; needs jinja2."""
    from markupsafe import Markup

    style, script = (Markup((_PACKAGE / "pages" / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    drawn = {name: Markup(figure) if figure.startswith("<svg") else figure for name, figure in figures.items()}
    page = _environment().get_template(template)
    return page.render(content=content, figures=drawn, style=style, script=script, json_name=json_name)


def as_format(value: Json, form: str = "text") -> str:
    """Format a value by one of ``FORMATS``: ``percent`` takes a fraction, ``size`` bytes, ``duration`` seconds; None is empty.

    An interval is a mapping of fractions ``value``, ``low``, ``high`` and maybe the number of images ``n``.
    """
    if value is None:
        return ""
    return FORMATS[form](value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 9999.5 else f"{value:.4g}"


def _interval(value: Mapping[str, float]) -> str:
    if value["low"] is None:
        return _percent(value["value"])
    images = f", n = {value['n']:,}" if value.get("n") is not None else ""
    return f"{_percent(value['value'])} ({100 * value['low']:.1f}–{100 * value['high']:.1f}{images})"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


FORMATS: dict[str, Callable[[Json], str]] = {
    "text": str,
    "number": _number,
    "count": "{:,}".format,
    "percent": _percent,
    "interval": _interval,
    "duration": duration,
    "size": size_text,
}


def _sort_key(value: Json) -> Json:
    number = value["value"] if isinstance(value, Mapping) else value
    return "" if number is None else number


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(as_format=as_format, sort_key=_sort_key)
    environment.tests.update(small=lambda figure: getattr(figure, "is_small", False), svg=lambda figure: figure.startswith("<svg"))
    environment.globals.update(headings=_headings, parts=environment.get_template("pages/parts.html").module)
    return environment


def _headings(body: str) -> list[tuple[str, str]]:
    """List the sections of a page: name and text."""
    return [(name, html.unescape(text)) for name, text in _HEADING.findall(body)]


def _writable(text: str) -> str:
    """Replace what UTF-8 cannot have: half of a pair, as names of files on Linux may hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
