"""The files of a report: report.md, report.json, and report.html with its figures, one file for a browser."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from up.figures import FAINT, INK, RIGHT, WRONG
from up.files import write_text
from up.pages.images import svg
from up.pages.page import write_page
from up.schema.search import FULL_TRAIN
from up.search.final import rows_of
from up.search.report import StageReport, best_so_far, commands, final_verdict, honesty, markdown, report_of, with_half
from up.search.stages import Search, Stage
from up.search.worker import open_study
from up.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT = "report.md"
_MOST_LINES = 200  # of the parallel coordinates


def write_report(search: Search, stages: Sequence[Stage]) -> None:
    """Write report.md and report.json, and report.html where the extra ``viz`` is installed."""
    reports = [report_of(stage) for stage in stages if stage.name != FULL_TRAIN]
    final = next((stage for stage in stages if stage.name == FULL_TRAIN), None)
    rows = rows_of(final, open_study(final).trials()) if final is not None else []
    write_text(search.run / REPORT, "\n".join(markdown(search, reports, rows)) + "\n")
    drawn = reports if find_spec("matplotlib") is not None else []
    figures = {f"{report.stage.name}/{name}": figure for report in drawn for name, figure in figures_of(report)}
    with warnings.catch_warnings():  # without jinja2 there is report.md
        warnings.simplefilter("ignore")
        write_page(search.run, "report", "search/page.html", content_of(search, reports, rows), figures)


def content_of(search: Search, reports: Sequence[StageReport], rows: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Return the content of the page."""
    final = search.section.stages[-1].full_train
    return {
        "title": f"Search of {search.path.name}",
        "honesty": honesty(search, rows),
        "stages": [_stage_content(report) for report in reports],
        "final": [{**row, "shown": with_half(row["mean"], row["half"])} for row in rows],
        "verdict": list(final_verdict(rows, final.select)) if final is not None else [],
        "commands": list(commands(search, rows)),
    }


def _stage_content(report: StageReport) -> dict[str, Json]:
    stage = report.stage
    algorithm = getattr(stage.section, "algorithm", "search")
    controls = [{"row": f"control: {name}", "trials": trials, "value": value} for name, trials, value in report.control_rows()]
    nothing = [None] * len(stage.objectives)
    return {
        "name": stage.name,
        "algorithm": algorithm,
        "objectives": list(stage.objectives),
        "states": report.states,
        "seconds": report.seconds,
        "verdict": report.verdict(),
        "rows": [{"row": algorithm, "trials": len(report.history.complete), "value": report.result}, *controls],
        "front": [trial.number for trial in report.front],
        "importance": report.importance,
        "lineage": report.lineage,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "reason": trial.reason,
                "epoch": trial.epoch,
                "seconds": trial.seconds,
                "point": stage.text_of(trial.point),
                **dict(zip(stage.objectives, trial.final or nothing, strict=False)),
            }
            for trial in report.history.trials
        ],
    }


def figures_of(report: StageReport) -> Iterator[tuple[str, str]]:
    """Draw the figures of a stage as SVG: progress, Pareto front, parallel coordinates, importance."""
    complete = [each for each in report.history.complete if each.final]
    keys = len(report.stage.space)
    if complete:
        yield "progress", _drawn(lambda axes: _progress(axes, report))
        if len(report.stage.objectives) > 1:
            yield "front", _drawn(lambda axes: _front(axes, report))
        if keys > 1 and len(complete) > 1:
            yield "coordinates", _drawn(lambda axes: _coordinates(axes, report), width=max(5.0, 1.2 * keys))
        if report.importance:
            yield "importance", _drawn(lambda axes: _importance(axes, report))


def _drawn(draw: Callable[[Axes], object], width: float = 5.0) -> str:
    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)

    return svg(width, 3.2, fill)


def _progress(axes: Axes, report: StageReport) -> None:
    name, way = next(iter(report.stage.objectives.items()))
    axes.set_title(f"{name} by trial")
    complete = [each for each in report.history.complete if each.final]
    values = [each.final[0] for each in complete if each.final]
    numbers = [each.number for each in complete]
    axes.scatter(numbers, values, s=14, color=RIGHT, label="trial")
    axes.step(numbers, best_so_far(values, way), where="post", color=INK, label="best so far")
    for at, (control, _, value) in enumerate(report.control_rows()):
        if value is not None:
            axes.axhline(value, color=WRONG, linestyle=("--", ":", "-.")[at % 3], label=f"control: {control}")
    axes.set_xlabel("trial")
    axes.locator_params("x", integer=True)
    axes.legend(fontsize=8, frameon=False)


def _front(axes: Axes, report: StageReport) -> None:
    first, second = list(report.stage.objectives)[:2]
    axes.set_title("Pareto front")
    for trials, colour, label in ((report.history.complete, FAINT, "trial"), (report.front, WRONG, "front")):
        pairs = [each.final for each in trials if each.final]
        axes.scatter([pair[1] for pair in pairs], [pair[0] for pair in pairs], s=16, color=colour, label=label)
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.legend(fontsize=8, frameon=False)


def _coordinates(axes: Axes, report: StageReport) -> None:
    """Draw each complete trial as a line over the keys of the space, the better the more opaque."""
    space, history = report.stage.space, report.history
    axes.set_title("keys of each trial, the best trials darkest")
    ranked = sorted((each for each in history.complete if each.final), key=lambda each: history.losses(each)[0], reverse=True)
    drawn = ranked[-_MOST_LINES:]
    for rank, trial in enumerate(drawn):
        shares = [None if share is None else float(share) for share in space.encode(space.active(trial.point))]
        heights = [float("nan") if share is None else share for share in shares]
        better = rank / max(1, len(drawn) - 1)
        axes.plot(range(len(space)), heights, color=RIGHT, alpha=0.15 + 0.8 * better, linewidth=1 + better)
    axes.set_xticks(range(len(space)), [name.rpartition(".")[2] for name in space.names], rotation=30, ha="right", fontsize=8)
    axes.set_yticks([0, 1], ["first", "last"], fontsize=8)


def _importance(axes: Axes, report: StageReport) -> None:
    axes.set_title("importance (PED-ANOVA)")
    names = list(report.importance)[::-1]
    axes.barh(range(len(names)), [report.importance[name] for name in names], color=RIGHT)
    axes.set_yticks(range(len(names)), [name.rpartition(".")[2] for name in names])  # two keys may end alike
