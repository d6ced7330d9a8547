"""Steps of a run that leave no trace: on its real data and net, without a run folder, from its initial weights."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import torch

from up.build.build import session_of
from up.build.data import build_dataset, train_batches, train_loader
from up.build.finetune import section_of
from up.build.fit import auto_keys, fitted
from up.build.network import load_start_weights, select_device, synchronize_and_compile
from up.build.parts import RunParts, build_parts
from up.build.start import Start
from up.build.training import build_runner, optimizer_of, timetable
from up.data.bad_images import BadImages
from up.data.loader import EvalLoader, TrainLoader
from up.data.sampler import TrainBatches
from up.distill.teachers import classes_of_teacher
from up.distributed.env import world_in_environment
from up.distributed.failures import Vote
from up.distributed.signals import StopRequest
from up.engine.bad_images import BadImageLog
from up.engine.checkpoint import CheckpointFolder
from up.engine.features import CHUNK, FeatureCache
from up.engine.hooks import Hooks
from up.engine.loop import accumulate
from up.engine.memory import Memory
from up.engine.session import TrainingSession
from up.errors import UserError, out_of_memory
from up.files import LATEST
from up.optim import set_lr
from up.tasks.experiment import Experiment
from up.text import count, duration, size_text, some_of
from up.tracking.speed import process_peak

MEASURED = 20  # steps
_WARM_UP = 3  # of them, which start workers and choose algorithms
_SHARE, _FEWEST = 0.02, 5  # of the steps of a run that its estimate may measure, and from which it is worth it
_FEWEST_IMAGES = 1000  # for cached features: of two views of these, the two chunks that are measured are 3 %


def trial_session(experiment: Experiment, *, steps: int, weights: bool = True) -> tuple[RunParts, TrainingSession]:
    """Build the session of a run, at its first step and with data for ``steps`` steps. Creates nothing, resumes nothing.

    Memory that runs out is an error; hooks of the file are left out. Without ``weights`` those of ``saver.pretrain_model`` are not
    loaded.
    """
    with experiment.plugin_errors():
        device = select_device(experiment)
        experiment, _ = fitted(experiment, device)
        parts = replace(build_parts(experiment, device), hooks=Hooks([]))
    if weights:
        load_start_weights(experiment, parts.net, parts.class_names)
    synchronize_and_compile(experiment, parts.net)
    addition = parts.distillation or parts.search
    runner = build_runner(experiment, parts.net, addition, stage=parts.stage, mix=parts.mix, device=parts.device, compiled=True)
    optimizer = optimizer_of(experiment, parts.net)
    runner.add_parameters_to(optimizer)
    folder = CheckpointFolder(experiment.folder, keeping=None, config_sha256="")
    session = session_of(experiment, parts, Start(folder, None, None, None), runner, optimizer, StopRequest())
    return parts, replace(
        session,
        memory=Memory(runner.net, policy="stop", strike=parts.fault.exhaust if parts.fault.action else None),
        loader_from=lambda step: train_loader(experiment, parts.train_data, parts.batches, range(step, steps)),
    )


class StepTime(NamedTuple):
    """Number of steps, seconds of each, and the seconds of these that it waits for data."""

    steps: int
    step_s: float
    wait_s: float
    title: str = ""

    def __str__(self) -> str:
        share = self.wait_s / self.step_s if self.step_s else 0.0
        return f"{self.steps:,} steps{self.title} of {_short(self.step_s)}, {share:.0%} of it waiting for data"


@dataclass(frozen=True)
class Estimate:
    """Seconds of the parts of a run, and bytes of memory at the peak, measured on a few steps."""

    phases: Sequence[StepTime]  # one after the other
    measured: int  # steps
    features_s: float  # of the pass that computes cached features
    evaluation_s: float
    evaluations: int
    peak_bytes: int
    is_gpu: bool

    @property
    def total_s(self) -> float:
        """Seconds of the whole run."""
        return sum(each.steps * each.step_s for each in self.phases) + self.features_s + self.evaluations * self.evaluation_s

    def __str__(self) -> str:
        parts = [f"features {duration(self.features_s)}"] if self.features_s else []
        parts += map(str, self.phases)
        parts += [f"{self.evaluations:,} evaluations of {_short(self.evaluation_s)}"] if self.evaluations else []
        memory = f"{size_text(self.peak_bytes)} of {'GPU memory' if self.is_gpu else 'memory'} at the peak"
        return f"estimate: {duration(self.total_s)}, {memory}, from {count(self.measured, 'measured step')} ({'; '.join(parts)})"


def _short(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 10 else duration(seconds)


def estimate(experiment: Experiment, *, steps: int = MEASURED) -> Estimate:
    """Measure ``steps`` steps of training and a few batches of the evaluation, and extrapolate to the whole run.

    Leaves no trace: the net is built and loaded again, and thrown away.
    """
    parts, session = trial_session(experiment, steps=steps)
    is_gpu, total, features = parts.device.type == "cuda", parts.times.total, parts.features
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(parts.device)
    phases, features_s, first = [], 0.0, 0
    if features.cache is not None:
        first = features.cache.until
        features_s, loader = _features(features.cache, parts.batches, steps)
        of_features = replace(session, loader_from=lambda step: loader)
        phases.append(StepTime(first, *seconds_of_a_step(of_features, at=0), " on features"))
    if first < total:
        phases.append(StepTime(total - first, *seconds_of_a_step(session, at=total - 1)))
    evaluations = sum(parts.times.evaluate.is_due(step) for step in range(1, total + 1)) if parts.evaluation else 0
    return Estimate(
        phases,
        measured=steps,
        features_s=features_s,
        evaluation_s=_evaluation_seconds(parts, session) if evaluations else 0.0,
        evaluations=evaluations,
        peak_bytes=torch.cuda.max_memory_allocated(parts.device) if is_gpu else process_peak(),
        is_gpu=is_gpu,
    )


def estimate_line(experiment: Experiment) -> str:
    """Estimate time and memory of a run that is about to start, in a line, or why not; empty if it resumes or cannot be built.

    Measures at most 2 % of its steps, 20 at most, and nothing of a run so short that these would be too few.
    """
    if (experiment.folder / LATEST).exists():
        return ""
    open_keys = auto_keys(experiment.config)
    if open_keys or world_in_environment() > 1:
        why = f"{some_of(open_keys)}: auto is chosen first" if open_keys else "several processes train"
        return f"estimate: none, since {why}; the log shows the remaining time"
    try:
        trainer = experiment.config.trainer
        data = build_dataset(experiment, "train", classes_of_teacher(experiment))
        batches = train_batches(experiment, data)
        total = timetable(trainer, batches.steps_per_epoch, iter_base=experiment.config.runtime.iter_base).total
        steps = min(MEASURED, int(_SHARE * total))
        few = count(total, "step") if steps < _FEWEST else ""
        if section_of(experiment).features != "every_step" and len(data) < _FEWEST_IMAGES:
            few = f"{count(len(data), 'image')} to compute features of"
        if few:
            return f"estimate: none, since the run has only {few}; the log shows the remaining time"
        return str(estimate(experiment, steps=steps))
    except UserError:  # the run itself reports it
        return ""
    except Exception as error:
        if out_of_memory(error) is None:
            raise
        return "estimate: none, since memory runs out with whole batches"
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def seconds_of_a_step(session: TrainingSession, *, at: int) -> tuple[float, float]:
    """Measure a step and its wait for data, over the steps of the session's loader, with what trains ``at`` a step."""
    times: list[tuple[float, float]] = []
    session.freeze(at)
    for step, data in enumerate(session.steps(from_step=0)):
        if data.failure is not None:
            raise data.failure
        begun = perf_counter()
        set_lr(session.optimizer, session.schedule(step))
        accumulate(session, data, step)
        scale = session.meter.scale()
        session.meter.take()
        session.precision.step(
            session.optimizer, session.clip, session.blame(), scale
        )  # waits for the device: on a GPU for the step before
        times.append((perf_counter() - begun + data.wait_s, data.wait_s))
    session.precision.settle()
    counted = times[min(_WARM_UP, len(times) - 1) :]
    return sum(time for time, _ in counted) / len(counted), sum(wait for _, wait in counted) / len(counted)


def _features(cache: FeatureCache, batches: TrainBatches, steps: int) -> tuple[float, TrainLoader]:
    """Measure the pass over two chunks of images; return its seconds for all images, and steps on the features of these."""
    first = cache.views._replace(images=min(2 * CHUNK, cache.views.images))
    with TemporaryDirectory() as folder:
        few = replace(cache, run=Path(folder), views=first)
        begun = perf_counter()
        log = BadImageLog(BadImages(max_bad=first.images, total=first.images), Path(folder))
        few.fill(lambda: Vote.GO, log, say=lambda line: None)
        seconds = (perf_counter() - begun) * cache.views.images / first.images
    return seconds, TrainLoader(few, batches, end_step=steps, collate=few.batch)  # the files are open


def _evaluation_seconds(parts: RunParts, session: TrainingSession) -> float:
    """Evaluate the first batches, with both sets of weights, and extrapolate to all of them."""
    assert parts.evaluation is not None
    assert isinstance(parts.evaluation.batches, EvalLoader)
    begun = perf_counter()
    first = list(islice(parts.evaluation.batches, 3))
    replace(parts.evaluation, batches=first)(session.model, session.ema)
    return (perf_counter() - begun) / max(1, len(first)) * len(parts.evaluation.batches)
