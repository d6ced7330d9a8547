"""The section ``mimic``: the layers of the student, those of the teachers, and the loss between them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from up.config.argument import AtLeast1, FreeOnResume, Name, NotNegative, PartOf
from up.config.section import Part, Section

Adapter = Literal["conv1x1", "linear"]


def _as_list(data: object) -> object:
    """Take a single layer without brackets as a list."""
    if isinstance(data, dict) and isinstance(data.get("mimic_name"), str):
        return {**data, "mimic_name": [data["mimic_name"]]}
    return data


class MimicStudent(Section):
    """The layers of the student."""

    mimic_name: list[Name] = Field(min_length=1)
    """Paths of modules whose outputs are compared with the teacher's, such as ``head.classifier``; ``PATH:input`` is the input of
    the module."""
    adapter: Adapter | list[Adapter | None] | None = None
    """Adapter: a layer, trained with the student, from the student's width to the teacher's. conv1x1 is for maps, linear for
    vectors or tokens; a list has one, or null, for each of mimic_name."""

    _one_name = model_validator(mode="before")(_as_list)


class MimicTeacher(Section):
    """The layers of a teacher, and its weights."""

    mimic_name: list[Name] = Field(min_length=1)
    """Paths of modules, one for each of the student's, in the same order."""
    teacher_weight: Annotated[Name | None, FreeOnResume()] = None
    """File with the teacher's weights."""
    teacher_bn_mode: Literal["eval", "train", "precise"] | None = None
    """``train``: batch normalisation of the teacher uses the statistics of the batch; otherwise its own."""

    _one_name = model_validator(mode="before")(_as_list)


class MimicCfgs(Section):
    """Block around the loss."""

    loss: Annotated[Part, PartOf("mimic_loss")]
    """Loss between student and teacher. Of logits: kl_loss, kd_loss, ce_loss, bce_loss, dkd, dist; of features:
    l2_loss, cosine, attention_transfer."""


class MimicJob(Section):
    """A pair of student layers and teacher layers with a loss."""

    gathers: ClassVar[dict[str, str]] = {"teachers": r"teacher\w*"}

    mimic_ins_type: Literal["base"] = "base"
    """Kind of job; ``base`` is the only one."""
    loss_weight: NotNegative = 1.0
    """Factor of the loss, which is divided by the number of layers; times the ``loss_weight`` in the loss's own kwargs."""
    warm_up_iters: Annotated[int, Field(ge=-1)] = -1
    """Steps over which the factor grows linearly from 0; -1: no warm-up."""
    cfgs: MimicCfgs
    """The loss."""
    student: MimicStudent
    """The student's layers."""
    teachers: dict[str, MimicTeacher] = Field(min_length=1)
    """The layers of each teacher, under the name of its net: ``teacher``, ``teacher0``, …"""


class MimicCache(Section):
    """Cache of the teachers' outputs on disk, so that a second run with the same images does not run the teachers."""

    dir: Name
    """Folder of the cache."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format of the stored outputs."""
    topk: AtLeast1 | None = None
    """Store only the k largest logits of each image and the sum of the other probabilities; unset stores all."""


class MimicSection(Section):
    """Knowledge distillation: one job, written directly, or several with ``mimic_as_jobs``."""

    gathers: ClassVar[dict[str, str]] = {"jobs": r"mimic_job\w*"}

    mimic_as_jobs: bool = False
    """Several jobs are written side by side: ``mimic_job0: {…}``, ``mimic_job1: {…}``."""
    task_loss: bool = True
    """Add the loss of the task itself."""
    cache: Annotated[MimicCache | None, FreeOnResume()] = None
    """Cache of the teachers' outputs."""
    preflight: Annotated[Literal["error", "warn", "skip"], FreeOnResume()] = "error"
    """Evaluation of every teacher on up to 512 validation images before the first step. A teacher no better than chance is an
    error, or a warning; ``skip`` does not evaluate."""
    jobs: dict[str, MimicJob] = Field(min_length=1)
    """The jobs by name."""

    @classmethod
    def known_keys(cls) -> list[str]:
        return [*super().known_keys(), *MimicJob.known_keys()]

    @classmethod
    def misplaced(cls, key: str) -> str | None:
        """Report keys of a job beside jobs, or under a ``mimic_as_jobs`` that is true without any."""
        if key not in MimicJob.model_fields and MimicJob.gathered_in(key) is None:
            return None
        return "belongs in a job here: move it to mimic_job0, or, for a single job, leave mimic_as_jobs and mimic_job* out"

    @model_validator(mode="before")
    @classmethod
    def _single_job(cls, data: object) -> object:
        """Take a job that is written directly in ``mimic`` as ``mimic_job0``."""
        if not isinstance(data, dict) or data.get("mimic_as_jobs") or any(cls.gathered_in(key) for key in data):
            return data
        job = {key: value for key, value in data.items() if key in MimicJob.model_fields or MimicJob.gathered_in(key)}
        rest = {key: value for key, value in data.items() if key not in job}
        return {**rest, "mimic_as_jobs": True, "mimic_job0": job}
