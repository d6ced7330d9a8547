"""Figures in one style, drawn by matplotlib (extra ``viz``), and fonts for names in any script."""

from __future__ import annotations

import io
import math
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

INK, FAINT = "#20242c", "#59606c"
RIGHT, WRONG = "#175ca8", "#c2401c"  # blue and vermilion: different to colour-blind readers, too
HEAT = "inferno"  # perceptually uniform: more is lighter, also in grey print
DOTS_PER_INCH = 200
_OPACITY = 0.8  # of the largest heat over an image
_GREY = [0.299, 0.587, 0.114]  # luminance of red, green and blue
_STYLE: dict[str, object] = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,  # points, as all sizes of text
    "figure.constrained_layout.h_pad": 0.06,  # inches
    "figure.constrained_layout.w_pad": 0.06,
    "figure.titlesize": 13,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5 to $10"
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


def missing_matplotlib(owner: str) -> str | None:
    """Say what to install for ``owner`` to draw; None if matplotlib is installed."""
    if find_spec("matplotlib") is not None:
        return None
    return f"{owner} needs matplotlib, which is not installed. Install it: pip install -e '.[viz]'"


@contextmanager
def styled(further: Mapping[str, object] | None = None) -> Iterator[None]:
    """Apply this style to figures of matplotlib, and ``further`` settings; those from before return at the end."""
    import matplotlib
    from matplotlib import style

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style.use({**_STYLE, **(further or {})})
        yield


def render(width: float, height: float, draw: Callable[[Figure], object]) -> bytes:
    """Return the PNG of a figure of ``width`` x ``height`` inches that ``draw`` fills; equal input gives equal bytes.

    Each text is set in a font that has its letters. The settings of matplotlib are kept.
    """
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text

    with styled():
        figure = Figure((width, height), layout="compressed")
        draw(figure)
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            if (path := _font_file(text.get_text())) is not None:
                text.set_fontproperties(FontProperties(fname=path, size=text.get_fontsize()))
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def overlaid(image: Pixels, heat: Floats) -> Pixels:
    """Lay a map (h, w) of 0 to 1 over an image (H, W, 3) in grey, as ``Panel`` draws it."""
    import matplotlib

    height, width = image.shape[:2]
    enlarged = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR), np.float64)
    grey = (image @ _GREY)[..., None]
    alpha = _OPACITY * enlarged[..., None]
    colours = 255 * matplotlib.colormaps[HEAT](enlarged)[..., :3]
    return np.asarray((grey * (1 - alpha) + colours * alpha).round(), dtype=np.uint8)


def shortened(text: str, letters: float) -> str:
    """Cut ``text`` to ``letters`` letters of Latin width, with ``…`` at the end; those of East Asia count twice."""
    room = letters
    for place, letter in enumerate(text):
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            return text[: max(1, place - 1)] + "…"
    return text


@dataclass(frozen=True)
class Panel:
    """An image (H, W, 3), a map (h, w) of 0 to 1, or a map laid over the image in grey."""

    caption: str
    image: Pixels | None = None
    heat: Floats | None = None

    def draw(self, axes: Axes, extent: tuple[float, float, float, float], interpolation: str) -> None:
        """Draw the panel over ``extent``: left, right, bottom, top."""
        image, heat = self.image, self.heat
        how = "nearest" if interpolation == "box" else interpolation  # the same where a map is enlarged
        if image is not None:
            axes.imshow(image if heat is None else image @ _GREY, "gray", vmin=0, vmax=255, extent=extent)
        if heat is not None:
            alpha = None if image is None else _OPACITY * heat
            axes.imshow(heat, HEAT, vmin=0, vmax=1, alpha=alpha, extent=extent, interpolation=how)


def panels(
    shown: Sequence[Panel], *, title: str, note: str, scale: str, ends: tuple[str, str], interpolation: str = "bilinear"
) -> bytes:
    """Return the PNG of panels in a square, all of the size of the first, an image.

    ``title`` stands above, ``note`` below, and a scale of colours at the right, from ``ends[0]`` to ``ends[1]``.
    """
    first = shown[0].image
    assert first is not None, "the first panel is an image"
    across = math.ceil(math.sqrt(len(shown)))
    down = math.ceil(len(shown) / across)
    side = max(0.9, min(2.6, 7.5 / across))  # of a panel, in inches
    width = max(across * (side + 0.15) + 0.9, 4.5)
    height = max(down * (side * first.shape[0] / first.shape[1] + 0.3) + 0.75, 2.4)

    def draw(figure: Figure) -> None:
        from matplotlib.cm import ScalarMappable

        figure.suptitle(shortened(title, 9 * width), weight="bold")
        figure.supxlabel(shortened(note, 13 * width), color=FAINT, fontsize=9)
        grid = figure.subplots(down, across, squeeze=False)
        for panel, axes in zip(shown, grid.flat, strict=False):
            panel.draw(axes, (0, first.shape[1], first.shape[0], 0), interpolation)
            size = 9 if across <= 2 else 8
            axes.set_title(shortened(panel.caption, side * 120 / size), fontsize=size)
        for axes in grid.flat:
            axes.set_axis_off()
        bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=grid, label=scale, fraction=0.05, aspect=25)
        bar.set_ticks([0, 1], labels=list(ends))

    return render(width, height, draw)


# Fonts


def font_for(text: str, size: int) -> Font:
    """Find a font of ``size`` pixels with all letters of ``text``; Pillow's own, which has ASCII, if none has."""
    path = _font_file(text)
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def is_drawable(text: str) -> bool:
    """Whether an installed font has all letters of ``text``."""
    return text.isprintable() and (text.isascii() or _font_file(text) is not None)


def missing_font(names: Iterable[str]) -> str | None:
    """Say which font is missing for ``names``; None if all can be drawn."""
    name = next((name for name in names if name.isprintable() and not is_drawable(name)), None)
    if name is None:
        return None
    lacking = next((letter for letter in name if not is_drawable(letter)), name[0])
    script = unicodedata.name(lacking, "this script").split()[0]
    is_east_asian = script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
    family = "Noto Sans CJK (Debian: fonts-noto-cjk)" if is_east_asian else "Noto Sans (Debian: fonts-noto-core)"
    folders = {"win32": "~/AppData/Local/Microsoft/Windows/Fonts", "darwin": "~/Library/Fonts"}
    fix = f"Install {family}, or put a .ttf file with these letters into {folders.get(sys.platform, '~/.local/share/fonts')}."
    if find_spec("matplotlib") is None:
        fix = "Fonts are found by matplotlib. Install it: pip install -e '.[viz]'"
    return f"no font here has all letters of {name[:40]!r} ({script}): images show the class number instead of such names. {fix}"


@cache
def _font_files() -> tuple[str, ...]:
    """List all installed fonts, DejaVu Sans of matplotlib first, then upright ones of normal weight."""
    if find_spec("matplotlib") is None:
        return ()
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    styles = ("bold", "italic", "oblique", "mono", "light", "thin", "black", "condensed", "serif", "emoji")

    def rank(path: str) -> tuple[int, str]:
        name = Path(path).name.lower()
        return sum(style in name for style in styles), name

    return str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), *sorted(findSystemFonts(), key=rank)


@cache
def _font_file(text: str) -> str | None:
    """Find the first font with all letters of ``text``; None if there is none, and for ASCII, which needs no search."""
    if text.isascii():
        return None
    return next((path for path in _font_files() if all(letter.isspace() or _has(path, letter) for letter in text)), None)


@cache
def _has(path: str, letter: str) -> bool:
    from matplotlib.font_manager import get_font

    try:
        return get_font(path).get_char_index(ord(letter)) != 0
    except (OSError, RuntimeError):  # damaged, or a format that cannot be drawn
        return False
