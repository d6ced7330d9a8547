"""Draw the training curves of a run: loss on the left, what was measured on the right.

    python tools/plot_curve.py runs/quickstart/metrics.jsonl docs/curve.png [--metric top1]

The loss is that of the log's intervals, on a logarithmic scale; the metric is that of the evaluations, of the weights and, where
the run keeps one, of their moving average.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from up.figures import FAINT, RIGHT, WRONG, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, float | str]


def curves(records: Sequence[Record], metric: str) -> bytes:
    """The PNG of a run's curves."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        draw_curve(left, records, "train", "loss", "loss", RIGHT)
        left.set_title("training loss", loc="left")
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter("")
        draw_curve(right, records, "eval", metric, "weights", RIGHT)
        if draw_curve(right, records, "eval", f"ema_{metric}", "moving average", WRONG):
            right.legend(loc="lower right", frameon=False, fontsize=9)
        right.set_title(f"{metric}, %", loc="left")
        right.set_ylim(top=100)

    return render(9, 3.3, draw)


def draw_curve(axes: Axes, records: Sequence[Record], phase: str, key: str, label: str, colour: str) -> bool:
    """Draw ``key`` over epochs; False if no record of ``phase`` has it."""
    points = [(float(record["epoch"]), float(record[key])) for record in records if record["phase"] == phase and key in record]
    axes.plot(
        *zip(*points, strict=True) if points else ([], []), color=colour, marker="o", markersize=3, label=label, clip_on=False
    )
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", which="major", color="#e2e5ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", color=FAINT)
    return bool(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("figure", type=Path, help="PNG to write")
    parser.add_argument("--metric", default="top1", help="metric of the evaluations (default: top1)")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.metrics.read_text(encoding="utf-8").splitlines()]
    arguments.figure.write_bytes(curves(records, arguments.metric))
    print(f"{arguments.figure}: {sum(record['phase'] == 'eval' for record in records)} evaluations")


if __name__ == "__main__":
    main()
