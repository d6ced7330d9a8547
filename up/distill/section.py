"""The teachers of a configuration, and the keys that name their weights."""

from __future__ import annotations

from up.config.signature import signature_of
from up.config.tree import DEFAULT
from up.errors import Problem
from up.schema.mimic import MimicSection
from up.tasks.experiment import Experiment


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
            if module.type == "onnx":
                place, file = f"{teacher}.onnx", module.kwargs.get("file")
            before, earlier = found.setdefault(teacher, (place, file))
            if file is not None and earlier not in (None, file):
                fix = f"Keep one of them: {before} names another."
                experiment.raise_if_any([Problem(got=file, expected=str(earlier), key=place, fix=fix)])
            if earlier is None and file is not None:
                found[teacher] = (place, file)
    return found
