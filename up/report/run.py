"""The page of a run: curves, the task's findings about its best checkpoint, speed, environment, configuration, commands."""

from __future__ import annotations

import shlex
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from up.build.record import environment
from up.engine.checkpoint import read_sidecar
from up.errors import UserError
from up.figures import FAINT, INK, RIGHT, WRONG
from up.files import LATEST, best_of_run
from up.intervals import Interval
from up.pages.page import write_page
from up.report.content import TEMPLATE, Figures, contents, missing_in
from up.report.evaluation import RunEvaluation, evaluated_run
from up.report.folder import RunFolder
from up.run_files import CONFIG, REPORT
from up.schema.show import values_with_origins
from up.tasks.experiment import Experiment
from up.tasks.report import Cards, Code, Note, PageSection, Plot, Plots, Table
from up.text import count, duration, size_text, yaml_text
from up.tracking.log import OF_THE_MACHINE
from up.types import Json, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM = REPORT.removesuffix(".*")
COLOURS = (INK, WRONG, RIGHT)  # of training, validation, and validation of the averaged weights
_NOT_CURVES = {"phase", "step", "epoch", "lr", *OF_THE_MACHINE}


@dataclass(frozen=True)
class WrittenReport:
    """Files of a report, lines for the terminal, and what the page lacks."""

    files: Sequence[Path]
    lines: Sequence[str]
    missing: Sequence[str]


def write_report(run: RunFolder, checkpoint: Path | None = None) -> WrittenReport:
    """Write ``report.html`` and ``report.json`` into the run folder, about ``checkpoint``, by default the run's best.

    What cannot be shown is named on the page: an evaluation that fails does not end it unless ``checkpoint`` is given.
    """
    folder, experiment = run.folder, run.experiment
    evaluation, missing = _evaluation(run, checkpoint)
    figures = Figures()
    sections = contents(_sections(run, evaluation), figures)
    if evaluation is not None and not any(section["name"] not in FRAME for section in sections):
        missing.append(f"the task {experiment.task.name} supplies no sections about its evaluation (Task.report)")
    missing += [*_gaps(run), *missing_in(sections)]
    content = {
        "title": f"Run {folder.name}",
        "summary": list(_summary(run, evaluation)),
        "cards": _cards(run, evaluation),
        "missing": missing,
        "run": {"folder": folder, "task": experiment.task.name, "state": run.status.state if run.status else None, **run.record},
        "evaluation": _evaluation_record(evaluation),
        "sections": sections,
    }
    files = write_page(folder, STEM, TEMPLATE, content, figures.found)
    return WrittenReport(files, [*_summary(run, evaluation), *_metric_lines(experiment, evaluation)], missing)


def _evaluation(run: RunFolder, checkpoint: Path | None) -> tuple[RunEvaluation | None, list[str]]:
    found = checkpoint or best_of_run(run.folder)
    if found is None:
        return None, [f"an evaluation: {run.folder} has no checkpoint yet"]
    if run.experiment.config.dataset.test is None:
        return None, ["an evaluation: the configuration has no dataset.test"]
    try:
        return evaluated_run(run.experiment, found, run.folder, keep=True), []
    except UserError as error:
        if checkpoint is not None:
            raise
        warnings.warn(f"the page has no evaluation: {error}", stacklevel=2)
        return None, [f"an evaluation: {error}"]


def _gaps(run: RunFolder) -> Iterator[str]:
    if not run.history:
        yield "curves: metrics.jsonl is missing or empty"
    elif not run.of_training("data_wait"):
        yield "speed, data wait and memory of the training: metrics.jsonl is of an earlier version"
    if not run.record:
        yield "command, environment and origin of each value: run.json is missing, as in runs of earlier versions"
    if run.status is None or run.status.state != "done":
        yield f"the end of the run: it is {run.status.state if run.status else 'not known to be finished'}"


def _sections(run: RunFolder, evaluation: RunEvaluation | None) -> Iterator[PageSection]:
    if run.history:
        yield PageSection("curves", "Curves", [Plots([*_curves(run)])])
    if evaluation is not None:
        yield _metrics(run.experiment, evaluation)
        with run.experiment.plugin_errors():
            yield from run.experiment.task.report(evaluation.evidence)
    yield _speed(run, evaluation)
    yield _repeat(run)
    yield _environment(run)
    yield _configuration(run)


FRAME = {"curves", "metrics", "speed", "environment", "configuration", "repeat"}


# Curves


def _curves(run: RunFolder) -> Iterator[Plot]:
    best = run.best_epoch()
    losses = {
        "training": run.points("train", "loss"),
        "validation": run.points("eval", "loss"),
        "validation, averaged weights": run.points("eval", "ema_loss"),
    }
    yield _plot("loss", "loss", losses, best)
    for name in _main_metrics(run):
        of_metric = {name: run.points("eval", name), f"{name}, averaged weights": run.points("eval", f"ema_{name}")}
        yield _plot(f"metric-{name}", f"{name}, {run.experiment.task.unit}", of_metric, best)
    yield _plot("lr", "learning rate", {"learning rate": run.points("train", "lr")}, best)
    if run.of_training("data_wait"):
        waits = {"data wait": [(epoch, 100 * value) for epoch, value in run.points("train", "data_wait")]}
        yield _plot("data-wait", "time spent waiting for data, %", waits, best, is_from_zero=True)
        speeds = {"images per second": run.points("train", "images_per_s")}
        yield _plot("speed", "images per second", speeds, best, is_from_zero=True)


def _main_metrics(run: RunFolder) -> list[str]:
    """List the first metrics of the evaluations, without losses and those of averaged weights."""
    names = [name for line in run.history if line["phase"] == "eval" for name in line if name not in _NOT_CURVES]
    return [name for name in dict.fromkeys(names) if not name.startswith("ema_") and not name.endswith("loss")][:2]


def _plot(
    name: str, label: str, lines: Mapping[str, list[tuple[float, float]]], best: float | None, *, is_from_zero: bool = False
) -> Plot:
    shown = {line: points for line, points in lines.items() if points}

    def draw(figure: Figure) -> None:
        of_lines = dict(zip(lines, COLOURS[-len(lines) :] if len(lines) > 1 else COLOURS, strict=False))
        colours = [of_lines[line] for line in shown]
        axes = figure.subplots()
        draw_lines(axes, shown, label, best, colours)
        if is_from_zero:
            axes.set_ylim(bottom=0)

    return Plot(f"curve-{name}", draw, (5.2, 3.2), data={"label": label, "lines": shown, "best_epoch": best})


def draw_lines(
    axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], label: str, best: float | None, colours: Sequence[str]
) -> None:
    """Draw curves over epochs, with a mark at the best epoch."""
    for (name, points), colour in zip(lines.items(), colours, strict=True):
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker="o" if len(points) < 25 else "", markersize=3.5)
    if best is not None:
        axes.axvline(best, color=FAINT, linestyle=(0, (2, 2)), linewidth=1)
        axes.text(best, 1.0, " best", transform=axes.get_xaxis_transform(), color=FAINT, fontsize=8, va="bottom", ha="center")
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", integer=True, nbins=8)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)


# Numbers


def _metrics(experiment: Experiment, evaluation: RunEvaluation) -> PageSection:
    rows: list[Record] = []
    for name, value in evaluation.metrics.items():
        is_loss = name.endswith("loss")
        rows.append(
            {"metric": name, "value": metric_text(experiment, name, value, evaluation.intervals.get(name)), "is_loss": is_loss}
        )
    table = Table([("metric", "metric", "text"), ("value", "value", "text")], rows)
    how = f"{evaluation.checkpoint.name} on {count(evaluation.images, 'image')}; {evaluation.source}."
    return PageSection(
        "metrics", "Metrics", [Note(how), table] if rows else [Note(f"{how} The evaluation gives no metrics.", missing=True)]
    )


def metric_text(experiment: Experiment, name: str, value: float, interval: Interval | None) -> str:
    """Format a metric with its unit and interval."""
    text = f"{value:.4f}" if name.endswith("loss") else experiment.task.in_unit(value)
    return f"{text} {interval}" if interval is not None else text


def _metric_lines(experiment: Experiment, evaluation: RunEvaluation | None) -> Iterator[str]:
    for name, value in evaluation.metrics.items() if evaluation is not None else ():
        yield f"  {name} {metric_text(experiment, name, value, evaluation.intervals.get(name) if evaluation else None)}"


def _evaluation_record(evaluation: RunEvaluation | None) -> Json:
    if evaluation is None:
        return None
    return {
        "checkpoint": evaluation.checkpoint,
        "images": evaluation.images,
        "seconds": evaluation.seconds,
        "source": evaluation.source,
        "metrics": evaluation.metrics,
        "intervals": {name: interval._asdict() for name, interval in evaluation.intervals.items()},
    }


def _summary(run: RunFolder, evaluation: RunEvaluation | None) -> Iterator[str]:
    status = run.status
    state = "state unknown" if status is None else f"{status.state}, {count(status.epoch, 'epoch')} ({count(status.step, 'step')})"
    best = run.best_epoch()
    yield f"{run.folder}: {state}{'' if best is None else f', best at epoch {best:g}'}"
    if evaluation is not None:
        yield f"{evaluation.checkpoint.name} on {count(evaluation.images, 'image')}: {evaluation.source}"


def _cards(run: RunFolder, evaluation: RunEvaluation | None) -> list[Json]:
    cards: list[Json] = []
    if evaluation is not None:
        main = evaluation.evidence.evaluator.main_metric if evaluation.metrics else ""
        for name in dict.fromkeys([main, *evaluation.metrics]):
            if name in evaluation.metrics and len(cards) < 3:
                text = metric_text(run.experiment, name, evaluation.metrics[name], None)
                interval = evaluation.intervals.get(name)
                note = "" if interval is None else f"{interval.low:.1f}–{interval.high:.1f} (95 %), n = {interval.n:,}"
                cards.append({"label": name, "value": text, "note": note})
        parameters = sum(parameter.numel() for parameter in evaluation.net.parameters())
        cards.append({"label": "parameters", "value": f"{parameters:,}", "note": ""})
    best = run.best_epoch()
    if best is not None:
        cards.append({"label": "best epoch", "value": f"{best:g}", "note": "" if run.status is None else f"of {run.status.epoch}"})
    return cards


def _speed(run: RunFolder, evaluation: RunEvaluation | None) -> PageSection:
    cards = []
    if speeds := run.of_training("images_per_s"):
        waits, peaks = run.of_training("data_wait"), run.of_training("peak_memory")
        cards.append(("training", f"{statistics.median(speeds):,.0f} images/s", "median of the reports, without evaluations"))
        cards.append(("data wait", f"{100 * statistics.fmean(waits):.1f} %", "of the time of training steps"))
        cards.append(("peak memory", size_text(max(peaks)), "GPU tensors, or the whole process on a CPU"))
    if (seconds := _training_time(run)) is not None:
        cards.append(("from start to last checkpoint", duration(seconds), count(len(run.record["starts"]), "start")))
    if evaluation is not None and evaluation.seconds is not None:
        rate = evaluation.images / max(evaluation.seconds, 1e-9)
        cards.append(("evaluation", f"{rate:,.0f} images/s", f"{duration(evaluation.seconds)}, images read and decoded"))
    return PageSection("speed", "Speed and memory", [Cards(cards)] if cards else [Note("No speed was recorded.")])


def _training_time(run: RunFolder) -> float | None:
    sidecar, starts = read_sidecar(run.folder / LATEST), run.record.get("starts", [])
    if sidecar is None or not starts:
        return None
    begun, saved = datetime.fromisoformat(starts[0]["at"]), datetime.fromisoformat(sidecar.saved)
    return max(0.0, (saved - begun).total_seconds())


def _environment(run: RunFolder) -> PageSection:
    trained = run.record.get("environment")
    known = trained or environment(torch.device("cpu"))
    rows = [
        {"name": name, "value": size_text(value) if name == "GPU memory" else str(value)}
        for name, value in known.items()
        if value is not None
    ]
    note = "Of the training." if trained else "Of this evaluation; that of the training was not recorded."
    return PageSection(
        "environment", "Environment", [Note(note), Table([("name", "name", "text"), ("value", "value", "text")], rows)]
    )


def _configuration(run: RunFolder) -> PageSection:
    recorded = run.record.get("origins", {})
    rows = [
        {"key": key, "value": value, "origin": recorded.get(key, "not recorded" if not recorded else "default")}
        for key, value, _ in values_with_origins(run.experiment.config, run.experiment.decoded.origins)
    ]
    columns = [("key", "key", "text"), ("value", "value", "text"), ("origin", "written in", "text")]
    written = [row for row in rows if row["origin"] != "default"]
    blocks = [
        Table(columns, written, "Values that were written"),
        Table(columns, rows, folded=f"All {len(rows)} values, defaults included"),
    ]
    return PageSection("configuration", "Configuration", blocks if recorded else blocks[1:])


def _repeat(run: RunFolder) -> PageSection:
    starts = run.record.get("starts", [])
    blocks: list[Note | Code] = []
    if starts:
        lines = [line for start in starts for line in (f"cd {shlex.quote(start['folder'])}", start["command"])]
        note = "As it was typed" if len(starts) == 1 else "As it was typed; the later commands resumed it"
        blocks += [Note(f"{note}. A finished run is not trained again: choose another saver.save_dir."), Code("\n".join(lines))]
    config, again = run.folder / CONFIG, run.folder.with_name(f"{run.folder.name}-again")
    blocks.append(Note("From the effective configuration in the run folder, wherever the values came from:"))
    commands = (["train", config, "-o", f"saver.save_dir={yaml_text(again)}"], ["eval", config], ["report", run.folder])
    blocks.append(Code("\n".join(shlex.join(["up", *map(str, words)]) for words in commands)))
    return PageSection("repeat", "Repeat it", blocks)
