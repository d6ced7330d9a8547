"""The content of the page of ``up replay``: the batch of a past step, and the loss of each of its images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from up.build.outline import units_of
from up.build.parts import RunParts
from up.build.record import read_record
from up.data.sampler import TrainBatches
from up.engine.checkpoint import CheckpointFolder, load_checkpoint
from up.engine.session import TrainingSession
from up.errors import UserError
from up.preview.batch import Viewer, digests, stage_of
from up.preview.content import PreviewPage, require_step, view_notes
from up.preview.history import logged_at, records_of
from up.preview.losses import ReplayedStep, StartWeights, session_at, start_of
from up.tasks.experiment import Experiment
from up.text import count, some_of
from up.types import Record


class ReplayRequest(NamedTuple):
    """A step (from 1), a checkpoint or the nearest, the number of ranks if it is known, and the number of images to show."""

    step: int
    checkpoint: Path | None = None
    ranks: int | None = None
    images: int = 64
    accept_data_change: bool = False


def replay(experiment: Experiment, run: Path, wanted: ReplayRequest) -> PreviewPage:
    """Return the page of a step of the run in the folder ``run``. Raises ``UserError``; creates nothing."""
    step = wanted.step
    with experiment.plugin_errors():
        start = start_of(run, step, wanted.checkpoint)
        ranks = wanted.ranks or int(read_record(run).get("environment", {}).get("ranks") or 1)
        parts, session = session_at(experiment, start, step, ranks)
        require_step(step, parts.times.total)
        doubts = list(_data_doubts(experiment, parts, _reference(run, start), wanted))
        require_same_batches(parts.batches, _reference(run, start))
        _cut_as_then(session, run, step)
        again = ReplayedStep(experiment, parts, session, step, ranks)
        figures: dict[str, str] = {}
        rows, batches, notes = _rows(experiment, again, figures)
    shown = {name for row in rows[: wanted.images] for name in row["images"]}
    scalars = again.scalars()
    logged, of_run = _logged(run, step, scalars)
    content = {
        "title": f"Step {step} of {run}",
        "run": str(run),
        "step": step,
        "epoch": (step - 1) // parts.times.steps_per_epoch + 1,
        "steps": parts.times.total,
        "ranks": ranks,
        "device": str(parts.device),
        "lr": session.schedule(step - 1),
        "weights": {
            "checkpoint": None if start.path is None else str(start.path),
            "step": start.step,
            "distance": step - 1 - start.step,
            "text": weights_text(start, step),
        },
        "loss": scalars.get("loss"),
        "logged": logged,
        "scalars": [{"name": name, "replayed": value, "logged": of_run.get(name)} for name, value in scalars.items()],
        "batches": batches,
        "rows": [{**row, "images": row["images"] if row["images"][0] in shown else []} for row in rows],
        "shown": min(wanted.images, len(rows)),
        "has_losses": any(row["loss"] is not None for row in rows),
        "notes": [*doubts, *notes],
    }
    return PreviewPage(content, {name: figure for name, figure in figures.items() if name in shown})


def _logged(run: Path, step: int, scalars: Mapping[str, float]) -> tuple[Record, Record]:
    """Describe the logged loss that covers ``step``; also return the logged scalars, empty if they cover other steps too."""
    record, first = logged_at(run, step)
    if record is None:
        return {"loss": None, "from_step": None, "to_step": None, "is_equal": False}, {}
    is_alone = first == step == record["step"]
    loss = record.get("loss")
    described = {"loss": loss, "from_step": first, "to_step": record["step"], "is_equal": is_alone and loss == scalars.get("loss")}
    return described, record if is_alone else {}


def weights_text(start: StartWeights, step: int) -> str:
    """Say which weights the losses are of, and how far they are from those that the step began with."""
    distance = step - 1 - start.step
    name = "the initial weights" if start.path is None else start.path.name
    if not distance:
        return f"{name}: the weights that step {step} began with"
    side = "before" if distance > 0 else "after"
    return f"{name}, after {count(start.step, 'step')}: {count(abs(distance), 'step')} {side} those that step {step} began with"


def require_same_batches(batches: TrainBatches, state: Record | None) -> None:
    """Raise ``UserError`` where the run had another global batch size, and so other batches."""
    if state is not None and state["global_batch_size"] != batches.global_batch_size:
        expected = f"{state['global_batch_size']}, that of the run"
        fix = "Give the run's number of ranks with --ranks."
        raise UserError("the global batch size", got=batches.global_batch_size, expected=expected, fix=fix)


def _reference(run: Path, start: StartWeights) -> Record | None:
    """Return a checkpoint that records the data of the run: the one that was loaded, else any other."""
    if start.state is not None:
        return start.state
    found = CheckpointFolder(run, keeping=None, config_sha256="").steps()
    return load_checkpoint(found[-1][0]) if found else None


def _data_doubts(experiment: Experiment, parts: RunParts, state: Record | None, wanted: ReplayRequest) -> Iterator[str]:
    """Compare the list of images with that of the run. Raises ``UserError`` where it changed, unless that is accepted."""
    if state is None:
        yield "the run has no checkpoint that records its data: whether they changed since is not known"
        return
    then, now = state["data_sha256"], parts.fingerprint.data_sha256
    if then == now:
        return
    source = experiment.config.dataset.train
    named = source.dataset.kwargs.get("meta_file", source.dataset.type) if source is not None else ""
    what = f"{named}: the training data changed since the run (sha256 {then[:12]}… then, {now[:12]}… now): its batches were others"
    if not wanted.accept_data_change:
        raise UserError(what, fix="Restore them, or replay what this step would train on now with --accept-data-change.")
    yield what


def _cut_as_then(session: TrainingSession, run: Path, step: int) -> None:
    """Cut micro-batches as the run did from the step on at which its memory ran out."""
    for record in records_of(run, "memory"):
        if record["step"] < step:
            session.memory.images = int(record["images_at_once"])


def _rows(experiment: Experiment, again: ReplayedStep, figures: dict[str, str]) -> tuple[list[Record], list[Record], list[str]]:
    """Describe all rows of the step, the largest loss first, its micro-batches, and how images are shown."""
    units = units_of(stage_of(again.parts, again.step - 1), again.parts.train_data)
    viewer = Viewer(experiment, again.parts, units, figures)
    rows: list[Record] = []
    batches: list[Record] = []
    notes: list[str] = []
    for found in again.batches():
        notes = notes or list(view_notes(found.batch, units))
        sha256 = digests(found.batch)
        place = {"rank": found.own.rank, "micro_batch": found.micro}
        batches.append({**place, **viewer.form(found.batch), "sha256": sha256, "digest": sha256["image"]})
        samples = [sample for sample, own in enumerate(found.own.rows(found.micro)) for _ in range(own.start, own.stop)]
        for row, sample in zip(viewer.rows(found.batch, found.own, found.micro), samples, strict=True):
            loss = found.losses[sample]
            text = "" if loss is None else f"loss {loss:.4g}"
            words = {"text": ", ".join(row["lines"]), "lines": [text, *row["lines"]]}
            rows.append({**row, "loss": loss, "is_finite": loss is None or math.isfinite(loss), **words})
    return sorted(rows, key=_by_loss), batches, [*notes, *_changed_files(experiment, again.parts, rows)]


def _by_loss(row: Record) -> tuple[bool, float]:
    loss = row["loss"]
    if loss is None:
        return True, 0.0
    return bool(math.isfinite(loss)), -loss if math.isfinite(loss) else 0.0


def _changed_files(experiment: Experiment, parts: RunParts, rows: Sequence[Record]) -> Iterator[str]:
    """Warn of image files that were written after the run began."""
    path_of = getattr(parts.train_data, "path_of", None)
    began = experiment.path.stat().st_mtime if experiment.path.is_file() else math.inf
    if path_of is None:
        return
    newer = []
    for index in dict.fromkeys(row["index"] for row in rows):
        path = Path(path_of(index))
        if path.is_file() and path.stat().st_mtime > began:
            newer.append(str(path))
    if newer:
        yield f"written after the run began, so that training may have seen other pixels: {some_of(newer, 5)}"
