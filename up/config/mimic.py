"""The section ``mimic``: which layers of the student follow which layers of the teachers, and by which loss."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from up.config.model import AtLeast1, Name, NotNegative, Part, Section
from up.config.part import PartOf


def _as_list(data: Any) -> Any:
    """A single layer may be written without the brackets."""
    if isinstance(data, dict) and isinstance(data.get("mimic_name"), str):
        return {**data, "mimic_name": [data["mimic_name"]]}
    return data


class MimicStudent(Section):
    """What is tapped in the student."""

    mimic_name: list[Name] = Field(min_length=1)
    """Paths of modules whose outputs follow the teacher's, such as ``head.classifier``."""

    _one_name = model_validator(mode="before")(_as_list)


class MimicTeacher(Section):
    """What is tapped in a teacher, and its weights."""

    mimic_name: list[Name] = Field(min_length=1)
    """Paths of modules, one for each of the student's, in the same order."""
    teacher_weight: Name | None = None
    """File with the teacher's weights."""
    teacher_bn_mode: Literal["eval", "train", "precise"] | None = None
    """``train`` lets the teacher's batch normalisation use the statistics of the batch; unset or ``eval`` its own."""

    _one_name = model_validator(mode="before")(_as_list)


class MimicCfgs(Section):
    """Wrapper of the loss, as older files write it."""

    loss: Annotated[Part, PartOf("mimic_loss")]
    """The distance between student and teacher: kl_loss, kd_loss, l2_loss, ce_loss, bce_loss, dkd, dist."""


class MimicJob(Section):
    """One pairing of student layers with teacher layers."""

    gathers: ClassVar[dict[str, str]] = {"teachers": r"teacher\w*"}

    mimic_ins_type: Name = "base"
    """The kind of job; there is one, ``base``."""
    loss_weight: NotNegative = 1.0
    """Factor of the loss, which is divided by the number of layers."""
    warm_up_iters: Annotated[int, Field(ge=-1)] = -1
    """Updates over which the factor grows linearly from 0; -1 for none."""
    cfgs: MimicCfgs
    """The loss."""
    student: MimicStudent
    """The student's layers."""
    teachers: dict[str, MimicTeacher] = Field(min_length=1)
    """The layers of each teacher, under the name of its net: ``teacher``, ``teacher0``, …"""


class MimicCache(Section):
    """Keeps what the teachers said, so that they run once and not in every epoch."""

    dir: Name
    """Folder of the cache."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """How numbers are stored."""
    topk: AtLeast1 | None = None
    """Store the k largest logits of each image only; unset stores all."""


class Mimic(Section):
    """Knowledge distillation: one job, written directly, or several with ``mimic_as_jobs``."""

    gathers: ClassVar[dict[str, str]] = {"jobs": r"mimic_job\w*"}

    mimic_as_jobs: bool = False
    """The jobs stand side by side as ``mimic_job0: {…}``, ``mimic_job1: {…}``."""
    task_loss: bool = True
    """Add the loss of the task itself."""
    cache: MimicCache | None = None
    """Cache of the teachers' outputs."""
    jobs: dict[str, MimicJob] = Field(min_length=1)
    """The jobs by name."""

    @classmethod
    def known_keys(cls) -> list[str]:
        return [*super().known_keys(), *MimicJob.known_keys()]

    @model_validator(mode="before")
    @classmethod
    def _single_job(cls, data: Any) -> Any:
        """A job that is written directly in ``mimic`` is the job ``mimic_job0``."""
        if not isinstance(data, dict) or data.get("mimic_as_jobs") or any(cls.gathered_in(key) for key in data):
            return data
        job = {key: value for key, value in data.items() if key in MimicJob.model_fields or MimicJob.gathered_in(key)}
        rest = {key: value for key, value in data.items() if key not in job}
        return {**rest, "mimic_as_jobs": True, "mimic_job0": job}
