"""The keys that turn a configuration into a distillation."""

from __future__ import annotations

from up.schema.teacher_files import LOGITS, source_of
from up.types import Record

_MANY = 100  # classes, from which on the teacher's probabilities are soft enough at a lower temperature


def distillation_of(teacher: str, *, labelled: bool = True, classes: int | None = None) -> Record:
    """Return the sections that let a net with a head learn from ``teacher``, to be merged over those of its training.

    ``teacher`` is a run folder, a checkpoint, a package, an ONNX graph or ``timm:NAME``. ``labelled``: whether the training images
    have labels; without them the student learns from the teacher's outputs alone. ``classes``, if known, chooses the temperature.
    Raises ``UserError`` for a file of another kind.
    """
    source_of(teacher)
    temperature = 1.0 if classes is not None and classes >= _MANY else 4.0
    return {
        "runtime": {"runner": {"type": "kd"}},
        "teacher": teacher,
        "mimic": {
            "task_loss": labelled,
            "cfgs": {"loss": {"type": "kd_loss", "kwargs": {"T": temperature}}},
            "student": {"mimic_name": [LOGITS]},
        },
    }
