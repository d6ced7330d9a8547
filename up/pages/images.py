"""Images of a page: thumbnails as data URIs, figures of matplotlib as SVG text in the colours of the page."""

from __future__ import annotations

import base64
import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from up.figures import FAINT, INK, RIGHT, WRONG, styled

Source = Image.Image | npt.NDArray[np.uint8] | str | Path
_SMALL = 64  # pixels: shorter images are enlarged without smoothing
_COLOURS = {INK: "currentColor", FAINT: "var(--faint)", RIGHT: "var(--right)", WRONG: "var(--wrong)"}


class DataUri(str):
    """An image as a data URI. ``is_small``: its pixels shall be seen when it is enlarged."""

    is_small = False


def thumbnail(source: Source, side: int = 192) -> DataUri:
    """Return an image as a data URI whose longer side is at most ``side`` pixels.

    ``source``: an image, an array (H, W) or (H, W, 3) of uint8, or a file, of which no more is decoded than needed. Small images
    are kept as they are, in PNG; others become JPEG. Raises ``OSError`` for a file that cannot be read.
    """
    image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            opened.draft("RGB", (2 * side, 2 * side))
            image = ImageOps.exif_transpose(_eight_bits(opened))
    image = _eight_bits(image)
    is_small = max(image.size) <= _SMALL
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file, form = io.BytesIO(), "PNG" if is_small else "JPEG"
    image.save(file, form, **({} if is_small else {"quality": 82}))
    uri = DataUri(f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}")
    uri.is_small = is_small
    return uri


def thumbnail_if_readable(path: str | Path, side: int) -> DataUri | None:
    """Return the thumbnail of a file; None if Pillow raises any error when it reads the file."""
    try:
        return thumbnail(path, side)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, OverflowError, MemoryError, struct.error):
        return None
    except Image.DecompressionBombError:
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert to grey or RGB; for floats and integers of more than 8 bits, 0 or less is black, the largest value white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0).clip(min=0)
        white = max(values.max(), 1e-12 if image.mode == "F" else 255)
        image = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def svg(width: float, height: float, draw: Callable[..., object]) -> str:
    """Return the SVG of a figure of ``width`` x ``height`` inches that ``draw(figure)`` fills; equal input gives equal text.

    The colours ``INK``, ``FAINT``, ``RIGHT`` and ``WRONG`` of ``up.figures`` follow the page, light or dark; the ground is
    transparent. Text stays text, so that it can be found, copied and read aloud.
    """
    file = io.StringIO()
    with warnings.catch_warnings(), styled({"svg.fonttype": "none", "svg.hashsalt": "up", "font.family": "sans-serif"}):
        from matplotlib.figure import Figure

        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser chooses the font
        figure = Figure((width, height), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<[a-z][^>]*>", _in_colours_of_the_page, text)  # the tags: a label may contain the name of a colour


def _in_colours_of_the_page(tag: re.Match[str]) -> str:
    found = tag[0]
    for colour, variable in _COLOURS.items():
        found = found.replace(colour, variable)
    return found
