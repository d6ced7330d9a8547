"""What hooks see of a run: its outline, how its batches are shown, and what its evaluations find beside the metrics."""

from __future__ import annotations

from functools import partial

from up.build.parts import RunParts
from up.data.dataset import KeyedDataset
from up.data.records import Batch, Dataset
from up.data.transforms.stages import DeviceTail
from up.data.transforms.viewing import Units, pixels_of, units_after
from up.engine.evaluate import Evaluator
from up.engine.hooks import Findings, Look, Outline
from up.engine.step import BatchStage
from up.tasks.experiment import Experiment
from up.types import Kwargs


def outline_of(experiment: Experiment, parts: RunParts) -> Outline:
    """Return the outline of a run of ``parts``."""
    times, evaluation, units = parts.times, parts.evaluation, units_of(parts.stage, parts.train_data)

    def captions(batch: Batch) -> list[str] | None:
        targets = experiment.task.targets(batch, parts.class_names)
        return None if targets is None else [", ".join(map(str, each)) for each in targets]

    return Outline(
        experiment.folder,
        parts.net,
        times.total,
        times.steps_per_epoch,
        parts.batches.global_batch_size,
        parts.class_names,
        sample_batch=evaluation.first_batch if evaluation else None,
        is_evaluated=lambda step: evaluation is not None and times.evaluate.is_due(step),
        settings=settings_of(experiment, parts),
        look=Look(partial(pixels_of, units=units), captions),
    )


def findings_of(experiment: Experiment, parts: RunParts, evaluator: Evaluator) -> Findings:
    """Return what the task finds in an evaluation, made when it is asked for."""
    task, names = experiment.task, parts.class_names
    return Findings(partial(task.figures, evaluator, names), partial(task.class_scores, evaluator, names))


def units_of(stage: BatchStage, data: Dataset) -> Units:
    """Return the units of the images of ``data`` after ``stage``."""
    tail = getattr(stage, "tail", None)
    if isinstance(tail, DeviceTail):
        return Units(1.0, tail.mean, tail.std)
    return units_after(data.transforms) if isinstance(data, KeyedDataset) else Units(None)


def settings_of(experiment: Experiment, parts: RunParts) -> dict[str, bool | float | str]:
    """Return the values of the configuration that runs are compared by."""
    config = experiment.config
    optimizer, schedule = config.trainer.optimizer, config.trainer.lr_scheduler
    found: dict[str, bool | float | str] = {
        "seed": config.runtime.random_seed,
        "epochs": parts.times.total / parts.times.steps_per_epoch,
        "global_batch_size": parts.batches.global_batch_size,
        "precision": config.runtime.precision,
        "ema": config.ema.enable,
        "mixing": "none" if parts.mix is None else type(parts.mix).__name__,
    }
    for name, part in (("optimizer", optimizer), ("lr_scheduler", schedule)):
        if part is not None:
            found |= {name: part.type, **_plain(f"{name}.", part.kwargs)}
    return found | {f"net.{module.name}": module.type for module in config.net if module.type != "self"}


def _plain(prefix: str, kwargs: Kwargs) -> dict[str, bool | float | str]:
    return {prefix + name: value for name, value in kwargs.items() if isinstance(value, bool | int | float | str)}
