"""The page of the server in one file: the browser loads nothing from elsewhere, which its headers say too."""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from string import Template
from typing import NamedTuple

from up.json_text import json_text
from up.types import Json

_ROOM = Path(__file__).parent
_TOPK = {"boxes": 50}  # predictions shown of an image, by the kind of answer


class Page(NamedTuple):
    """The page and the headers that it is sent with."""

    text: str
    headers: dict[str, str]


def page(metadata: dict[str, Json]) -> Page:
    """Return the page for the model that ``metadata`` describes."""
    style = _read(_ROOM.parent / "pages" / "style.css") + _read(_ROOM / "page.css")
    script = _read(_ROOM / "page.js")
    content = json_text(metadata).replace("<", "\\u003c")
    names = {key: html.escape(str(metadata[key])) for key in ("name", "version")}
    text = Template(_read(_ROOM / "page.html")).substitute(
        names, style=style, script=script, metadata=content, topk=_TOPK.get(metadata["answer"], 5)
    )
    policy = {
        "default-src": "'none'",
        "style-src": _hash_of(style),
        "script-src": _hash_of(script),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Page(text, headers)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
