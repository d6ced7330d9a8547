"""The teachers of a run, scored on its validation data before it begins."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import torch

from up.distributed import group
from up.build.distillation import Teaching
from up.errors import Problem
from up.data.loader import EvalLoader
from up.data.sampler import EvalBatches
from up.distill.section import weights_of_teachers
from up.tasks.experiment import Experiment
from up.engine.evaluate import Evaluation
from up.distill.preflight import IMAGES, Score, score
from up.distributed.failures import together

_BATCH = 64  # images that go in together


def preflight(
    experiment: Experiment, teaching: Teaching, evaluation: Evaluation | None, test_data: Any, device: torch.device
) -> Teaching:
    """Every teacher scored on validation images; all ranks take part. Raises ``ConfigError`` for one that only guesses."""
    section = experiment.config.mimic
    assert section is not None
    if section.preflight == "skip" or evaluation is None or test_data is None:
        return replace(teaching, warnings=[*teaching.warnings, "mimic.preflight: the teachers are not scored"])
    lines, warnings = list(teaching.lines), list(teaching.warnings)
    for teacher in teaching.teachers:
        if teacher.name in teaching.strangers:
            continue
        with together():
            teacher.to(device, channels_last=experiment.config.runtime.channels_last)
            own = score(teacher, _look_at(experiment, test_data), evaluation.stage, evaluation.precision.autocast())
        found = _of_all_ranks(own)
        if found is None:
            warnings.append(f"{teacher.name}: not scored: no labels, no logits, or logits of other heads than the labels")
            continue
        said = f"{teacher.name}: top-1 {found.top1:.2f} % of {found.images} validation images"
        lines.append(said)
        if found.looks_like_probabilities:
            warnings.append(f"{teacher.name}: its outputs are probabilities; softmax of them is nearly even. Expected logits.")
        if found.is_chance:
            what = (
                f"{said} is no better than guessing ({100 * found.chance:.2f} %). Are these its weights, does it expect other "
                "images (mean, std, channels), other classes in this order?"
            )
            with together():
                if section.preflight == "error":
                    place, _ = weights_of_teachers(experiment)[teacher.name]
                    experiment.raise_if_any([Problem(f"{what} To go on all the same: mimic.preflight: warn", key=place)])
            warnings.append(what)
    return replace(teaching, lines=lines, warnings=warnings)


def _look_at(experiment: Experiment, test_data: Any) -> EvalLoader:
    """Images from all over the validation data: a list may be sorted by class."""
    every = max(1, ceil(len(test_data) / IMAGES))
    batches = EvalBatches(
        len(test_data), batch_size=_BATCH, rank=group.rank(), world_size=group.world_size(), every=every
    )
    return EvalLoader(test_data, batches, collate=experiment.task.collate)


def _of_all_ranks(own: Score | None) -> Score | None:
    total: Score | None = None
    for each in group.gather_objects(own):
        if each is not None:
            total = each if total is None else total.plus(each)
    return total
