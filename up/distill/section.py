"""The teachers of a configuration, the keys that name their weights, and training images without labels."""

from __future__ import annotations

from collections.abc import Iterator

from up.config.signature import signature_of
from up.config.tree import DEFAULT
from up.errors import Problem
from up.schema.mimic import MimicSection
from up.schema.teacher_files import FILE
from up.tasks.experiment import Experiment
from up.tasks.task import LABELS_OR_TEACHER

GRAPHS = {"onnx": ".onnx", FILE: ""}
"""Types of a teacher's one module that is a graph, with the end of the key that names its file."""


def is_distillation(experiment: Experiment) -> bool:
    """Return whether the runner of the configuration distils."""
    return signature_of(experiment.tables["runner"].get(experiment.config.runtime.runner.type)).takes("terms")


def mimic_of(experiment: Experiment) -> MimicSection:
    """Return the section ``mimic`` of a distillation."""
    assert experiment.config.mimic is not None
    return experiment.config.mimic


def key_of_job(experiment: Experiment, job: str) -> str:
    """Return the key of a job in the file: ``mimic.mimic_job1``, or ``mimic`` for a job written directly in it."""
    written_apart = experiment.decoded.origins.of(f"mimic.{job}") != DEFAULT
    return f"mimic.{job}" if written_apart else "mimic"


def weights_of_teachers(experiment: Experiment) -> dict[str, tuple[str, str | None]]:
    """Return the key that names each teacher's weights, and the file; empty if the run does not distil."""
    mimic = experiment.config.mimic
    found: dict[str, tuple[str, str | None]] = {}
    if mimic is None or not is_distillation(experiment):
        return found
    for name, job in mimic.jobs.items():
        for teacher, side in job.teachers.items():
            place, file = f"{key_of_job(experiment, name)}.{teacher}.teacher_weight", side.teacher_weight
            module = experiment.config.teachers[teacher][0]
            if module.type in GRAPHS:
                place, file = f"{teacher}{GRAPHS[module.type]}", module.kwargs.get("file")
            before, earlier = found.setdefault(teacher, (place, file))
            if file is not None and earlier not in (None, file):
                fix = f"Keep one of them: {before} names another."
                experiment.raise_if_any([Problem(got=file, expected=str(earlier), key=place, fix=fix)])
            if earlier is None and file is not None:
                found[teacher] = (place, file)
    return found


def has_labels(experiment: Experiment) -> bool:
    """Return whether the training images have labels."""
    train = experiment.config.dataset.train
    return train is None or experiment.task.is_labelled(train.dataset)


def label_problems(experiment: Experiment) -> Iterator[Problem]:
    """Find settings that need labels where training images have none, or a single label where they have several."""
    train, mimic = experiment.config.dataset.train, experiment.config.mimic
    if train is not None and train.dataset.kwargs.get("multilabel"):
        yield from _losses_of_one_label(experiment)
    if train is None or has_labels(experiment):
        return
    if mimic is None or not is_distillation(experiment):
        got, key = train.dataset.kwargs.get("meta_type"), "dataset.train.dataset.kwargs.meta_type"
        yield Problem(got=got, expected="labels, which the loss needs", key=key, fix=LABELS_OR_TEACHER)
        return
    if mimic.task_loss:
        yield Problem(got=True, expected="false: the training images have no labels", key="mimic.task_loss", fix=LABELS_OR_TEACHER)
    for name, job in mimic.jobs.items():
        loss = experiment.tables["mimic_loss"].get(job.cfgs.loss.type)
        if loss.needs_labels or loss.needs_task_loss:
            expected = "a loss of the teacher's outputs alone, such as kd_loss: the training images have no labels"
            yield Problem(got=job.cfgs.loss.type, expected=expected, key=f"{key_of_job(experiment, name)}.cfgs.loss.type")


def _losses_of_one_label(experiment: Experiment) -> Iterator[Problem]:
    mimic = experiment.config.mimic
    for name, job in mimic.jobs.items() if mimic is not None and is_distillation(experiment) else ():
        if experiment.tables["mimic_loss"].get(job.cfgs.loss.type).needs_labels:
            expected = "a loss that needs no label, such as bce_loss: multilabel images have several"
            yield Problem(got=job.cfgs.loss.type, expected=expected, key=f"{key_of_job(experiment, name)}.cfgs.loss.type")
