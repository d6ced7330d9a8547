"""Score every teacher on validation images before training, with the student's pipeline and the task's evaluator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from math import ceil

import torch
from torch import Tensor, nn

from up.data.loader import EvalLoader
from up.data.records import Batch, Dataset
from up.data.sampler import EvalBatches
from up.distill.section import mimic_of, weights_of_teachers
from up.distill.teachers import Teacher
from up.distributed import group
from up.distributed.failures import on_all_ranks
from up.engine.evaluate import Evaluation, Evaluator
from up.errors import NumericalError, Problem, first_line
from up.models.net import Net
from up.tasks.experiment import Experiment, net_kind

IMAGES = 512
"""Number of validation images of a score."""
_BATCH = 64  # images


def score_teachers(
    experiment: Experiment, teachers: Iterable[Teacher], student: Net, evaluation: Evaluation, data: Dataset, device: torch.device
) -> tuple[list[str], list[str]]:
    """Return lines and warnings on every teacher; all ranks take part. Raises ``ConfigError`` for one that only guesses."""
    lines, warnings = [], []
    for teacher in teachers:
        evaluator = experiment.task.teacher_evaluator(data)
        with on_all_ranks():
            teacher.to(device, channels_last=experiment.config.runtime.channels_last)
            modules = [module.to(device) for module in _last_modules(experiment, student, teacher)]
            failure = collect(evaluator, teacher, modules, evaluation, _sample(experiment, data))
        gathered = group.gather_objects((evaluator.state(), failure))
        failure = next((failure for _, failure in gathered if failure), "")
        score = None
        if not failure:
            evaluator.merge([state for state, _ in gathered])
            score = experiment.task.teacher_score(evaluator)
        if score is None:
            warnings.append(f"{teacher.name}: not scored: {failure or 'no labels, or outputs that do not fit them'}")
            continue
        result = f"{teacher.name}: {score.text}"
        lines.append(result)
        warnings += [f"{teacher.name}: {score.warning}"] if score.warning else []
        if score.guessing:
            what = (
                f"{result} is no better than guessing ({score.guessing}). Are these its weights, does it expect other images "
                "(mean, std, channels), other classes in this order?"
            )
            with on_all_ranks():
                if mimic_of(experiment).preflight == "error":
                    key, _ = weights_of_teachers(experiment)[teacher.name]
                    experiment.raise_if_any([Problem(what, key=key, fix="To train anyway: mimic.preflight: warn")])
            warnings.append(what)
    return lines, warnings


def collect(
    evaluator: Evaluator, teacher: Teacher, modules: Sequence[nn.Module], evaluation: Evaluation, batches: Iterable[Batch]
) -> str:
    """Update the evaluator with the teacher's outputs, completed by ``modules``; returns the reason if it cannot read them.

    Raises ``NumericalError`` if the teacher's logits are not finite.
    """
    with torch.inference_mode(), evaluation.precision.autocast():
        for batch in batches:
            on_device = evaluation.stage(batch)
            record = {**on_device, **teacher.outputs(on_device)}
            logits = record.get("logits", ())
            if not all(bool(torch.isfinite(head).all()) for head in ([logits] if isinstance(logits, Tensor) else logits)):
                files = ", ".join(batch["filename"][:3])
                what = f"{teacher.name}: logits are not finite, for one of {files}, …"
                raise NumericalError(what, fix="Check its weights, and the mean and std of the images.")
            try:
                for module in modules:
                    record.update(module(record))
                evaluator.update(record, on_device)
            except Exception as error:  # any error of modules and evaluators about outputs that are not the student's
                return first_line(error)
    return ""


def _last_modules(experiment: Experiment, student: Net, teacher: Teacher) -> list[nn.Module]:
    """Copy the student's post-process modules, which turn the teacher's outputs into predictions."""
    entries = [entry for entry in experiment.config.net if entry.type != "self"]
    names = [entry.name for entry in entries if net_kind(experiment, entry) == "post_process"]
    return [deepcopy(student[name]).eval() for name in names if name not in teacher.net.module_names]


def _sample(experiment: Experiment, data: Dataset) -> EvalLoader:
    """Load images evenly spread over the validation data, which may be sorted by class."""
    every = max(1, ceil(len(data) / IMAGES))
    batches = EvalBatches(len(data), batch_size=_BATCH, rank=group.rank(), world_size=group.world_size(), every=every)
    return EvalLoader(data, batches, collate=experiment.task.collate)
