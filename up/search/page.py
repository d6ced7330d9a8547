"""The files of a report: report.md, and report.html with its figures, one file for a browser."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from up.files import write_text
from up.schema.search import FULL_TRAIN
from up.search.final import rows_of
from up.search.report import StageReport, best_so_far, commands, final_verdict, honesty, markdown, report_of, values_text
from up.search.stages import Search, Stage
from up.search.worker import open_study
from up.text import duration
from up.types import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Search of {{ search.path.name }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px } td, th { border-bottom: 1px solid #ddd; padding: .3rem .8rem;
text-align: left } pre { background: #f5f5f5; padding: .6rem; overflow-x: auto } .figures { display: flex; flex-wrap: wrap; gap:
1rem } svg { max-width: 100%; height: auto } </style></head><body>
<h1>Search of {{ search.path.name }}</h1>
<p>{{ honesty }}</p>
{% for report in reports %}
<h2>{{ report.stage.name }}: {{ report.stage.section.algorithm }}</h2>
<p>{{ report.states }}; {{ duration(report.seconds) }}. {{ report.verdict() }}</p>
<table><tr><th>row</th><th>trials</th><th>{{ report.stage.objectives | list | first }}</th></tr>
{% if report.history.best %}<tr><td><b>{{ report.stage.section.algorithm }}</b></td><td>{{ report.history.complete | length }}</td>
<td>{{ "%.4g" | format(report.history.best.final[0]) }}</td></tr>{% endif %}
{% for name, trials, value in report.control_rows() %}<tr><td>control: {{ name }}</td><td>{{ trials }}</td>
<td>{{ "none" if value is none else "%.4g" | format(value) }}</td></tr>{% endfor %}</table>
<div class="figures">{% for figure in figures[report.stage.name] %}{{ figure | safe }}{% endfor %}</div>
<table><tr><th>trial</th><th>state</th><th>epochs</th><th>time</th><th>objectives</th><th>point</th></tr>
{% for trial in report.history.trials %}
<tr><td>{{ trial.number }}</td><td title="{{ trial.reason }}">{{ trial.state }}</td><td>{{ trial.epoch }}</td>
<td>{{ duration(trial.seconds) }}</td><td>{{ values(report.stage, trial) }}</td>
<td>{{ report.stage.text_of(trial.point) }}</td></tr>
{% endfor %}</table>
{% if report.lineage %}<h3>Lineage</h3><table><tr>{% for key in report.lineage[0] %}<th>{{ key }}</th>{% endfor %}</tr>
{% for row in report.lineage %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>
{% endif %}{% endfor %}
{% if rows %}<h2>full_train</h2><table><tr>{% for key in rows[0] %}<th>{{ key }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>
{% for value in row.values() %}
<td>{{ "" if value is none else "%.4g" | format(value) if value is float else value }}</td>
{% endfor %}</tr>{% endfor %}</table>
{% for line in verdict %}<p>{{ line }}</p>{% endfor %}{% endif %}
<h2>Commands</h2><pre>{% for command in commands %}{{ command }}
{% endfor %}</pre></body></html>
"""
REPORT, PAGE = "report.md", "report.html"
_MOST_LINES = 200  # of the parallel coordinates


def write_report(search: Search, stages: Sequence[Stage]) -> None:
    """Write report.md, and report.html where the extra ``viz`` is installed."""
    reports = [report_of(stage) for stage in stages if stage.name != FULL_TRAIN]
    final = next((stage for stage in stages if stage.name == FULL_TRAIN), None)
    rows = rows_of(final, open_study(final).trials()) if final is not None else []
    write_text(search.run / REPORT, "\n".join(markdown(search, reports, rows)) + "\n")
    if all(find_spec(name) for name in ("jinja2", "matplotlib")):
        write_text(search.run / PAGE, page(search, reports, rows, list(commands(search, rows))))


def page(search: Search, reports: Sequence[StageReport], rows: Sequence[Mapping[str, Json]], commands: Sequence[str]) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    figures = {report.stage.name: figures_of(report) for report in reports}
    names = {
        "duration": duration,
        "values": values_text,
        "honesty": honesty(search, bool(rows)),
        "verdict": list(final_verdict(rows)),
    }
    return environment.from_string(_PAGE).render(
        search=search, reports=reports, rows=rows, commands=commands, figures=figures, **names
    )


def figures_of(report: StageReport) -> list[str]:
    """Draw the figures of a stage as SVG: progress, Pareto front, parallel coordinates, importance."""
    complete = [each for each in report.history.complete if each.final]
    if not complete:
        return []
    drawn = [_progress(report)]
    drawn += [_front(report)] if len(report.stage.objectives) > 1 else []
    drawn += [_coordinates(report)] if len(report.stage.space) > 1 and len(complete) > 1 else []
    drawn += [_importance(report)] if report.importance else []
    return [_svg(figure) for figure in drawn]


def _axes(title: str, width: float = 5.0) -> tuple[Figure, Json]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _progress(report: StageReport) -> Figure:
    name, way = next(iter(report.stage.objectives.items()))
    figure, axes = _axes(f"{name} by trial")
    complete = [each for each in report.history.complete if each.final]
    values = [each.final[0] for each in complete if each.final]
    numbers = [each.number for each in complete]
    axes.scatter(numbers, values, s=14, color="#4477aa", label="trial")
    axes.step(numbers, best_so_far(values, way), where="post", color="#222222", label="best so far")
    for at, (control, _, value) in enumerate(report.control_rows()):
        if value is not None:
            axes.axhline(value, color="#cc6677", linestyle=("--", ":", "-.")[at % 3], label=f"control: {control}")
    axes.set_xlabel("trial")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7)
    return figure


def _front(report: StageReport) -> Figure:
    first, second = list(report.stage.objectives)[:2]
    figure, axes = _axes("Pareto front")
    for trials, colour, label in ((report.history.complete, "#bbbbbb", "trial"), (report.front, "#cc6677", "front")):
        pairs = [each.final for each in trials if each.final]
        axes.scatter([pair[1] for pair in pairs], [pair[0] for pair in pairs], s=16, color=colour, label=label)
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.legend(fontsize=7)
    return figure


def _coordinates(report: StageReport) -> Figure:
    """Each complete trial as a line over the keys of the space, the better the darker."""
    from matplotlib import colormaps

    space, history = report.stage.space, report.history
    figure, axes = _axes("parallel coordinates", width=max(5.0, 1.2 * len(space)))
    ranked = sorted((each for each in history.complete if each.final), key=lambda each: history.losses(each)[0], reverse=True)
    for rank, trial in enumerate(ranked[-_MOST_LINES:]):
        shares = [None if share is None else float(share) for share in space.encode(space.active(trial.point))]
        heights = [float("nan") if share is None else share for share in shares]
        axes.plot(range(len(space)), heights, color=colormaps["viridis_r"](rank / max(1, len(ranked) - 1)), alpha=0.7, linewidth=1)
    axes.set_xticks(range(len(space)), [name.rpartition(".")[2] for name in space.names], rotation=30, ha="right", fontsize=7)
    axes.set_yticks([0, 1], ["first", "last"], fontsize=7)
    return figure


def _importance(report: StageReport) -> Figure:
    figure, axes = _axes("importance (PED-ANOVA)")
    names = list(report.importance)[::-1]
    axes.barh([name.rpartition(".")[2] for name in names], [report.importance[name] for name in names], color="#4477aa")
    return figure


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
