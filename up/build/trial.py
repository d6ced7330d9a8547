"""Steps of a run that leave no trace: on its real data and net, without a run folder, from its initial weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

import torch

from up.build.build import session_of
from up.build.data import train_loader
from up.build.fit import fitted
from up.build.network import load_start_weights, select_device, synchronized
from up.build.parts import RunParts, build_parts
from up.build.start import Start
from up.build.training import build_runner, optimizer_of
from up.data.loader import EvalLoader
from up.distill.cache import size_text
from up.distributed.signals import StopRequest
from up.engine.checkpoint import CheckpointFolder
from up.engine.hooks import Hooks
from up.engine.loop import accumulate
from up.engine.memory import Memory
from up.engine.session import TrainingSession
from up.optim import set_lr
from up.tasks.experiment import Experiment
from up.text import duration

MEASURED = 20  # steps
_WARM_UP = 3  # of them, which start workers and choose algorithms


def trial_session(experiment: Experiment, *, steps: int) -> tuple[RunParts, TrainingSession]:
    """Build the session of a run, at its first step and with data for ``steps`` steps. Creates nothing, resumes nothing.

    Memory that runs out is an error; hooks of the file are left out.
    """
    with experiment.plugin_errors():
        device = select_device(experiment)
        experiment, _ = fitted(experiment, device)
        parts = replace(build_parts(experiment, device), hooks=Hooks([]))
    load_start_weights(experiment, parts.net, parts.class_names)
    net = synchronized(experiment, parts.net)
    runner = build_runner(
        experiment,
        net,
        parts.distillation or parts.search,
        stage=parts.stage,
        mix=parts.mix,
        device=parts.device,
        compiled=experiment.config.runtime.compile,
    )
    optimizer = optimizer_of(experiment, parts.net)
    runner.add_parameters_to(optimizer)
    folder = CheckpointFolder(experiment.folder, keeping=None, config_sha256="")
    session = session_of(experiment, parts, Start(folder, None, None, None), runner, optimizer, StopRequest())
    return parts, replace(
        session,
        memory=Memory(runner.net, policy="stop", strike=parts.fault.exhaust),
        loader_from=lambda step: train_loader(experiment, parts.train_data, parts.batches, range(step, steps)),
    )


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step and of an evaluation, and bytes of memory at the peak, measured on a few steps."""

    step_s: float
    wait_s: float  # of it, for data
    evaluation_s: float
    steps: int
    evaluations: int
    peak_bytes: int | None  # of the GPU; None on a CPU

    @property
    def total_s(self) -> float:
        """Seconds of the whole run."""
        return self.steps * self.step_s + self.evaluations * self.evaluation_s

    def lines(self) -> list[str]:
        """Format the estimate for `up check` and the log."""
        share = self.wait_s / self.step_s if self.step_s else 0.0
        training = f"{self.steps:,} steps of {1000 * self.step_s:,.0f} ms, {share:.0%} of it waiting for data"
        evaluating = f"; {self.evaluations:,} evaluations of {duration(self.evaluation_s)}" if self.evaluations else ""
        memory = [] if self.peak_bytes is None else [f"estimate of GPU memory: {size_text(self.peak_bytes)} at the peak"]
        return [f"estimate of time: {duration(self.total_s)} ({training}{evaluating})", *memory]


def estimate(experiment: Experiment, *, steps: int = MEASURED) -> Estimate:
    """Measure ``steps`` steps of training and one batch of the evaluation, and extrapolate to the whole run. Leaves no trace."""
    parts, session = trial_session(experiment, steps=steps)
    is_gpu = parts.device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(parts.device)
    times: list[tuple[float, float]] = []
    for step, data in enumerate(session.steps(from_step=0)):
        if data.failure is not None:
            raise data.failure
        begun = perf_counter()
        set_lr(session.optimizer, session.schedule(step))
        accumulate(session, data, step)
        scale = session.meter.scale()
        session.meter.take()
        session.precision.step(session.optimizer, session.clip, session.blame, scale)  # waits for the device
        times.append((perf_counter() - begun + data.wait_s, data.wait_s))
    counted = times[min(_WARM_UP, len(times) - 1) :]
    total = parts.times.total
    evaluations = sum(parts.times.evaluate.is_due(step) for step in range(1, total + 1)) if parts.evaluation else 0
    return Estimate(
        step_s=sum(time for time, _ in counted) / len(counted),
        wait_s=sum(wait for _, wait in counted) / len(counted),
        evaluation_s=_evaluation_seconds(parts, session) if evaluations else 0.0,
        steps=total,
        evaluations=evaluations,
        peak_bytes=torch.cuda.max_memory_allocated(parts.device) if is_gpu else None,
    )


def _evaluation_seconds(parts: RunParts, session: TrainingSession) -> float:
    """Evaluate the first batches, with both sets of weights, and extrapolate to all of them."""
    assert parts.evaluation is not None
    assert isinstance(parts.evaluation.batches, EvalLoader)
    begun = perf_counter()
    first = list(islice(parts.evaluation.batches, 3))
    replace(parts.evaluation, batches=first)(session.model, session.ema)
    return (perf_counter() - begun) / max(1, len(first)) * len(parts.evaluation.batches)
