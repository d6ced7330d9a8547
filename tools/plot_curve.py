"""Draw the training curve of a run: loss on the left, what was measured on the right.

    python tools/plot_curve.py runs/quickstart/metrics.jsonl docs/curve.png [--metric top1]

The loss is that of the log's intervals, on a logarithmic scale; the metric is that of the evaluations, of the weights and, where
the run keeps one, of their moving average.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE, SCALE = (900, 330), 3  # drawn larger and reduced, for smooth lines
INK, FAINT, GRID, PAPER = (32, 36, 44), (112, 118, 130), (226, 229, 234), (255, 255, 255)
BLUE, RED = (23, 92, 168), (206, 62, 28)  # told apart by colour-blind readers too

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A named curve of (epoch, value)."""

    name: str
    points: Points
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Panel:
    """A frame with curves: ``ticks`` of the vertical axis, and how high in the frame (0 to 1) a value stands."""

    title: str
    lines: Sequence[Line]
    ticks: Sequence[float]
    height_of: Callable[[float], float]
    box: tuple[int, int, int, int]  # left, top, right, bottom


def curve(records: Sequence[dict[str, float | str]], metric: str) -> Image.Image:
    """The picture of a run's records."""
    train: Points = [(float(r["epoch"]), float(r["loss"])) for r in records if r["phase"] == "train"]
    measured = [Line("weights", points_of(records, metric), BLUE), Line("moving average", points_of(records, f"ema_{metric}"), RED)]
    panels = (
        logarithmic("training loss", [Line("loss", train, BLUE)], (60, 42, 420, 280)),
        linear(f"{metric}, %", [line for line in measured if line.points], (510, 42, 870, 280)),
    )
    picture = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    for panel in panels:
        draw_panel(ImageDraw.Draw(picture), panel)
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def points_of(records: Sequence[dict[str, float | str]], name: str) -> Points:
    return [(float(r["epoch"]), float(r[name])) for r in records if r["phase"] == "eval" and name in r]


def logarithmic(title: str, lines: Sequence[Line], box: tuple[int, int, int, int]) -> Panel:
    values = [value for line in lines for _, value in line.points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    return Panel(title, lines, [10.0**e for e in range(low, high + 1)], lambda v: (math.log10(v) - low) / (high - low), box)


def linear(title: str, lines: Sequence[Line], box: tuple[int, int, int, int]) -> Panel:
    """Up to 100, from a round number below the lowest value."""
    span = 100 - min(value for line in lines for _, value in line.points)
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50) if span <= 5 * step)
    low = 100 - step * math.ceil(span / step)
    ticks = [low + step * k for k in range(round((100 - low) / step) + 1)]
    return Panel(title, lines, ticks, lambda v: (v - low) / (100 - low), box)


def draw_panel(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    left, top, right, bottom = (SCALE * edge for edge in panel.box)
    small, large = ImageFont.load_default(12 * SCALE), ImageFont.load_default(15 * SCALE)
    last = max((epoch for line in panel.lines for epoch, _ in line.points), default=1.0)
    draw.text((left, top - 14 * SCALE), panel.title, INK, large, anchor="ls")
    for tick in panel.ticks:
        y = bottom - panel.height_of(tick) * (bottom - top)
        draw.line((left, y, right, y), GRID, SCALE)
        draw.text((left - 8 * SCALE, y), f"{tick:g}", FAINT, small, anchor="rm")
    step = max(1, math.ceil(last / 8))
    for epoch in range(0, math.floor(last) + 1, step):
        draw.text((left + epoch / last * (right - left), bottom + 6 * SCALE), str(epoch), FAINT, small, anchor="mt")
    draw.text(((left + right) / 2, bottom + 24 * SCALE), "epoch", FAINT, small, anchor="mt")
    for number, line in enumerate(panel.lines):
        places = [
            (left + epoch / last * (right - left), bottom - panel.height_of(value) * (bottom - top)) for epoch, value in line.points
        ]
        draw.line(places, line.colour, 2 * SCALE, joint="curve")
        for x, y in places:
            draw.ellipse((x - 2 * SCALE, y - 2 * SCALE, x + 2 * SCALE, y + 2 * SCALE), fill=line.colour)
        if len(panel.lines) > 1:
            draw.text((right - 4 * SCALE, bottom - (12 + 18 * number) * SCALE), line.name, line.colour, small, anchor="rs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--metric", default="top1", help="what the evaluations measured")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.metrics.read_text(encoding="utf-8").splitlines()]
    curve(records, arguments.metric).save(arguments.picture, optimize=True)
    print(f"{arguments.picture}: {sum(record['phase'] == 'eval' for record in records)} evaluations")


if __name__ == "__main__":
    main()
