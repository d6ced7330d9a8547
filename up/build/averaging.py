"""Averages of the weights of a finished run: greedy soup, WiSE-FT, mean of the last checkpoints, SWA.

Everything follows from the checkpoints of the run folder, so a run that is killed in between finishes with the same command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from up.build.data import build_dataset, workers_of
from up.build.data import section_of as source_of
from up.build.finetune import owes_averages, read_start, section_of, settings_of
from up.data.collate import without_bad
from up.data.loader import fetched
from up.data.records import Batch, Dataset, SampleKey, image_count
from up.distributed.failures import Vote, on_all_ranks
from up.distributed.group import from_main, is_main
from up.engine.averaging import between, greedy_soup, mean_of, recompute_statistics
from up.engine.checkpoint import ONLY_TO_RESUME, CheckpointFolder
from up.engine.ema import NoEma
from up.engine.evaluate import Evaluated
from up.engine.session import TrainingSession
from up.engine.timetable import Every
from up.files import BEST, START, write_atomically, write_json
from up.run_files import AVERAGES
from up.seed import generator
from up.tasks.experiment import Experiment
from up.text import count
from up.tracking.log import LOGGER
from up.types import Record

Weights = Mapping[str, Tensor]
_ALPHAS = tuple(number / 10 for number in range(11))
_IMAGES, _BATCHES = 256, 200  # largest batch and number of batches for BatchNorm statistics (Wu and Johnson 2021, section 3.1)
_ORDER = 5  # the purpose of the seed that chooses these images


def average_weights(experiment: Experiment, session: TrainingSession) -> None:
    """Make the averages that ``finetune`` asks for, measure, write and report them.

    Each is a file of weights beside the checkpoints. ``averaging.json`` has the metrics of all, and the file of the best, which
    ``eval``, ``predict`` and the exporters use. A collective operation. Raises ``EvaluationInterrupted`` if a signal comes.
    """
    step = session.progress.step
    if not from_main(owes_averages(experiment, step)):
        return
    made = _Averages(experiment, session)
    section = section_of(experiment)
    if section.soup is not None:
        made.soup(section.soup.top)
    if section.wise_ft is not None:
        made.wise_ft(section.wise_ft.alpha)
    if section.swa is not None:
        epoch = session.outline.steps_per_epoch
        ends = Every(epoch, step - (section.swa.epochs - 1) * epoch, step)
        made.mean("swa", [path for path, at in made.checkpoints if ends.is_due(at)])
    if section.average is not None:
        made.mean("average", [path for path, _ in made.checkpoints[-section.average.last :]])
    made.finish(step)


@dataclass
class _Averages:
    """The averages of one run, made one after the other: metrics by file, and what is recorded of each."""

    experiment: Experiment
    session: TrainingSession
    metrics: dict[str, float] = field(default_factory=dict)
    record: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder: CheckpointFolder = self.session.checkpointing.folder
        self.checkpoints: list[tuple[Path, int]] = from_main(folder.steps(stops=False))
        self.data: Dataset = build_dataset(self.experiment, "train")
        self.best: Path = from_main(self._best())
        self.session.freeze(max(0, self.session.progress.step - 1))  # frozen statistics do not change
        if self.session.evaluation is not None:
            self.metrics[BEST] = self.measure(served(self.best))

    def _best(self) -> Path:
        best = self.experiment.folder / BEST
        return best if best.is_file() else self.checkpoints[-1][0]

    def soup(self, top: int) -> None:
        """Make the greedy soup of the best checkpoints."""
        listed = from_main([path for path, _ in self.session.checkpointing.folder.ranked()])
        at = dict(self.checkpoints)
        ranked = [self.best, *(path for path in listed if at.get(path) != self.session.progress.best.get("step"))][:top]
        weights = [served(path) for path in ranked]
        alone = [self.metrics[BEST], *(self.measure(each) for each in weights[1:])]
        order = sorted(range(len(ranked)), key=lambda at: -alone[at])  # stable: of equal ones the first stays
        weights, alone, ranked = [weights[at] for at in order], [alone[at] for at in order], [ranked[at] for at in order]
        members, metric = greedy_soup(len(ranked), alone[0], lambda chosen: self.measure_mean([weights[at] for at in chosen]))
        self._write(
            "soup",
            [weights[at] for at in members],
            metric,
            members=[ranked[at].name for at in members],
            tried=dict(zip([path.name for path in ranked], alone, strict=True)),
        )

    def wise_ft(self, alpha: float | str) -> None:
        """Measure the weights between start and end, and write those of ``alpha``, or of the best for ``auto``.

        After a linear probe the line starts at its end: a head that is still random would spoil the points near the start.
        """
        probe = section_of(self.experiment).probe
        probed = probe.epochs * self.session.outline.steps_per_epoch if probe else None
        found = next((path for path, at in self.checkpoints if at == probed), None)
        start, end = served(found) if found else read_start(self.best, self.experiment.folder), served(self.best)
        alphas = sorted({*_ALPHAS, *([alpha] if isinstance(alpha, float) else [])})
        curve = {each: self.measure_line(start, end, each) for each in alphas}
        chosen = alpha if isinstance(alpha, float) else max(curve, key=lambda each: (curve[each], each))
        self.measure_line(start, end, chosen)
        self._write("wise", [self.weights()], curve[chosen], alpha=chosen, curve=curve, start=found.name if found else START)

    def mean(self, name: str, paths: Sequence[Path]) -> None:
        """Make the mean of the raw weights in ``paths``."""
        weights = [raw(path) for path in paths]
        metric = self.measure_mean(weights) if self.session.evaluation is not None else None
        self._write(name, weights, metric, members=[path.name for path in paths])

    def measure_line(self, start: Weights, end: Weights, alpha: float) -> float:
        """Measure the weights at ``alpha``, with statistics of their own unless they are an end."""
        self.load(between(start, end, alpha))
        if 0 < alpha < 1:
            self.recompute()
        return self.metric()

    def measure_mean(self, weights: Sequence[Weights]) -> float:
        """Measure the mean of ``weights``, with statistics of its own."""
        self.load_mean(weights)
        return self.metric()

    def measure(self, weights: Weights) -> float:
        """Measure ``weights`` as they are."""
        self.load(weights)
        return self.metric()

    def load(self, weights: Weights) -> None:
        """Put ``weights`` into the network."""
        self.session.model.load_state_dict(dict(weights))

    def load_mean(self, weights: Sequence[Weights]) -> None:
        """Put the mean of ``weights`` into the network and recompute its statistics; a single entry keeps its own."""
        self.load(mean_of(weights))
        if len(weights) > 1:
            self.recompute()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the network, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.session.model.state_dict().items()}

    def recompute(self) -> None:
        """Recompute BatchNorm statistics over training images: the same on any number of ranks."""
        session = self.session
        with session.precision.autocast():
            if recompute_statistics(session.model, self._batches(), session.model):
                session.buffers.equalize()

    def _batches(self) -> Iterator[Batch]:
        config = self.experiment.config
        order = torch.randperm(len(self.data), generator=generator(config.runtime.random_seed, _ORDER)).tolist()
        size = min(_IMAGES, self.session.fingerprint.global_batch_size)
        groups = [order[at : at + size] for at in range(0, len(order), size)][:_BATCHES]
        keys = [[SampleKey(0, index) for index in group] for group in groups if len(group) > 1 or len(groups) == 1]
        workers = workers_of(source_of(self.experiment, "train"))
        for batch in fetched(self.data, keys, workers=workers, collate=self.experiment.task.collate):
            kept = without_bad(batch)
            if image_count(kept):
                yield self.session.runner.stage(kept)

    def metric(self) -> float:
        """Evaluate the weights of the network, and return the main metric; NaN counts as worst."""
        metrics, evaluator, _ = self.evaluated()
        value = metrics[evaluator.main_metric]
        return value if math.isfinite(value) else -math.inf

    def evaluated(self) -> Evaluated:
        """Evaluate the weights of the network."""
        session = self.session
        assert session.evaluation is not None
        return session.evaluation(session.model, NoEma(), lambda: Vote.for_request(session.stop))

    def _write(self, name: str, weights: Sequence[Weights], metric: float | None, **details: object) -> None:
        """Write the mean of ``weights`` as ``ckpt_NAME.pth``, with the best checkpoint's entries other than the training state."""
        self.load_mean(weights)
        file = f"ckpt_{name}.pth"
        with on_all_ranks():
            if is_main():
                whole = torch.load(self.best, map_location="cpu", weights_only=True)
                state = {part: value for part, value in whole.items() if part not in (*ONLY_TO_RESUME, "ema", "best")}
                state |= {"model": self.weights(), "metrics": {} if metric is None else {"main": metric}}
                write_atomically(self.experiment.folder / file, lambda opened: torch.save(state, opened))
        self.session.fault.strike(self.session.progress.step, "averaging")
        if metric is not None:
            self.metrics[file] = metric
        self.record[file] = {**details, **({} if metric is None else {"metric": metric})}
        shown = "" if metric is None else f": {metric:.4g}, the best checkpoint alone {self.metrics[BEST]:.4g}"
        members = details.get("members")
        of = count(len(members), "checkpoint") if isinstance(members, list) else f"alpha {details.get('alpha'):g}"
        _log(f"{file} ({of}){shown}")

    def finish(self, step: int) -> None:
        """Write ``averaging.json``: the file of the best weights, and all its metrics if it is an average; log the choice."""
        chosen = max(self.metrics, key=lambda file: (self.metrics[file], file != BEST)) if self.metrics else BEST
        record = {"settings": settings_of(self.experiment), "step": step, "best": chosen, "metrics": self.metrics}
        if chosen != BEST:
            self.load(raw(self.experiment.folder / chosen))
            record["best_metrics"] = self.evaluated().metrics
        with on_all_ranks():
            if is_main():
                write_json(self.experiment.folder / AVERAGES, {**record, "averages": self.record})
        _log(f"eval, predict and export use {chosen} (averaging.json)")


def _log(line: str) -> None:
    if is_main():
        LOGGER.info(line)


def raw(path: Path) -> dict[str, Tensor]:
    """Read the trained weights, not their moving average."""
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["model"]
    return state


def served(path: Path) -> dict[str, Tensor]:
    """Read the weights that are evaluated and exported: the moving average, if there is one."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = state.get("ema") or state["model"]
    return weights
