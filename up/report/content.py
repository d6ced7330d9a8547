"""Sections to the content of a page's JSON file, and its figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from up.figures import missing_matplotlib
from up.pages.images import svg
from up.tasks.report import Block, Cards, Code, Gallery, Note, PageSection, Plot, Plots, Table
from up.types import Json

TEMPLATE = "report/page.html"


@dataclass
class Figures:
    """Figures of a page by name: SVG text of drawings, data URIs of images."""

    found: dict[str, str] = field(default_factory=dict)

    def add_image(self, uri: str) -> str:
        """Add an image and return its name."""
        name = f"image-{len(self.found)}"
        self.found[name] = uri
        return name

    def draw(self, plot: Plot) -> Json:
        """Draw a plot; without matplotlib only its numbers are kept, with a line that says so."""
        shown = {"kind": "plot", "figure": plot.name, "caption": plot.caption, "data": plot.data}
        if (line := missing_matplotlib("This figure")) is not None:
            return {**shown, "figure": None, "missing": line}
        self.found[plot.name] = svg(*plot.size, plot.draw)
        return shown


def contents(sections: Iterable[PageSection], figures: Figures) -> list[Json]:
    """Return the sections as JSON; their images and drawings are added to ``figures``."""
    return [
        {
            "name": each.name,
            "title": each.title,
            "blocks": [_content(block, figures) for block in each.blocks],
            **({"data": each.data} if each.data else {}),
        }
        for each in sections
    ]


def missing_in(sections: Sequence[Json]) -> Iterator[str]:
    """Yield what the sections say that they lack."""
    for section in sections:
        yield from (block["text"] for block in section["blocks"] if block["kind"] == "note" and block["missing"])


def _content(block: Block, figures: Figures) -> Json:
    match block:
        case Table():
            columns = [{"key": key, "label": label, "format": form} for key, label, form in block.columns]
            return {"kind": "table", "columns": columns, "rows": block.rows, "caption": block.caption, "folded": block.folded}
        case Gallery():
            items = [
                {
                    "images": [figures.add_image(uri) for uri in item.images],
                    "title": item.title,
                    "lines": item.lines,
                    "tone": item.tone,
                }
                for item in block.items
            ]
            return {"kind": "gallery", "items": items, "wide": block.wide}
        case Plot():
            return figures.draw(block)
        case Plots():
            return {"kind": "plots", "items": [figures.draw(plot) for plot in block.items]}
        case Cards():
            return {
                "kind": "cards",
                "items": [{"label": label, "value": value, "note": note} for label, value, note in block.items],
            }
        case Code():
            return {"kind": "code", "text": block.text}
        case Note():
            return {"kind": "note", "text": block.text, "missing": block.missing}
