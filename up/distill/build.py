"""Build the terms, teachers, caches and adapters of an experiment, and check them with a batch of noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from up.data.records import Batch, Dataset
from up.distill.cache import CachedTeacher, build_caches
from up.distill.preflight import score_teachers
from up.distill.section import has_labels, is_distillation, key_of_job, mimic_of, weights_of_teachers
from up.distill.teachers import PHASES, ClassMatch, NetBuilder, Teacher, TeacherNet, load_teacher, match_classes
from up.distill.terms import DistillationTerm, DistillationTerms, HookedStudent, Pair
from up.engine.evaluate import Evaluation, evaluation_mode
from up.errors import Problem, UserError
from up.models.feature_hooks import FeatureHooks, Inspection, Shapes, inspect_layers, layer_problem
from up.models.net import Net
from up.models.preprocessing import ImagePreprocessing
from up.schema.mimic import MimicSection
from up.schema.sections import CompileMode
from up.seed import key, seed_all
from up.tasks.experiment import Experiment
from up.tasks.task import Size
from up.text import some_of

_ADAPTERS = 4  # purpose of the seed of the adapters' first weights


@dataclass(frozen=True)
class Student:
    """The student and its data."""

    net: Net
    class_names: Sequence[str] | None
    derived: Mapping[str, object]  # derived arguments of the training data
    example: Batch  # two images of noise
    sizes: Mapping[str, Size]  # of the images, by phase, where all have one size
    preprocessing: ImagePreprocessing | None = None  # of the images of ``dataset.test``, if it is known


@dataclass(frozen=True)
class Distillation:
    """Everything that distillation adds to a run. ``sources`` are the teachers, or the caches in front of them."""

    student: Net
    terms: DistillationTerms
    teachers: Sequence[Teacher]
    sources: Sequence[Teacher | CachedTeacher]
    adapters: Mapping[str, tuple[str, nn.Module]]
    overwritten: frozenset[str]  # layers of the student whose tensor a later layer changes in place
    lines: Sequence[str] = ()  # for the log
    warnings: Sequence[str] = ()
    unscored: frozenset[str] = frozenset()  # teachers of other classes, of which only features are used
    labelled: bool = True  # whether the training images have labels, and so a task loss

    def with_cache(self, experiment: Experiment, data: Dataset, *, steps_per_epoch: int, steps: int) -> Distillation:
        """Put a cache in front of the teachers, if ``mimic.cache`` asks for one."""
        if mimic_of(experiment).cache is None:
            return self
        epochs = steps / steps_per_epoch
        sources, lines = build_caches(experiment, self.terms, self.teachers, data, steps_per_epoch=steps_per_epoch, epochs=epochs)
        return replace(self, sources=sources, lines=[*self.lines, *lines])

    def preflight(
        self, experiment: Experiment, evaluation: Evaluation | None, test_data: Dataset | None, device: torch.device
    ) -> Distillation:
        """Score every teacher on validation images, if ``mimic.preflight`` asks for it; all ranks take part."""
        if mimic_of(experiment).preflight == "skip" or evaluation is None or test_data is None:
            return replace(self, warnings=[*self.warnings, "mimic.preflight: the teachers are not scored"])
        scored = [teacher for teacher in self.teachers if teacher.name not in self.unscored]
        lines, warnings = score_teachers(experiment, scored, self.student, evaluation, test_data, device)
        return replace(self, lines=[*self.lines, *lines], warnings=[*self.warnings, *warnings])

    def runner_arguments(
        self, student: nn.Module, device: torch.device, *, channels_last: bool, compile_mode: CompileMode | None
    ) -> dict[str, object]:
        """Return the arguments of the runner ``kd``: the student with hooks and adapters, terms, and teachers on the device."""
        for teacher in self.teachers:
            teacher.to(device, channels_last=channels_last, compile_mode=compile_mode)
        hooks = FeatureHooks(student, self.terms.student_layers, copied=self.overwritten)
        hooked = HookedStudent(student, self.adapters, hooks).to(device)
        return {"net": hooked, "terms": self.terms, "teachers": self.sources, "labelled": self.labelled}


def start_lines(experiment: Experiment, distillation: Distillation | None) -> tuple[list[str], list[str]]:
    """Return lines for the log about the teachers, and warnings, also about sections without effect."""
    config = experiment.config
    if distillation is None and config.mimic is not None:
        return [], [f"mimic: has no effect: runtime.runner.type is {config.runtime.runner.type!r}. For distillation: kd"]
    if distillation is None:
        fix = "For distillation: a section mimic, and runtime.runner.type: kd"
        return [], [f"{some_of(config.teachers)}: has no effect without mimic. {fix}"] if config.teachers else []
    unused = set(config.teachers) - {teacher.name for teacher in distillation.teachers}
    idle = [f"{some_of(sorted(unused))}: in no job of mimic, so not built"] if unused else []
    return list(distillation.lines), [*distillation.warnings, *idle]


def build_distillation(
    experiment: Experiment, student: Student, build_net: NetBuilder, *, files: bool = True
) -> Distillation | None:
    """Build terms and teachers and check them with a batch of noise; None if the runner does not distil.

    Without ``files`` the teachers have random weights. Nothing is created. Raises ``ConfigError`` for unknown layers, shapes
    that do not fit and classes that a teacher does not have.
    """
    section = experiment.config.mimic
    if section is None or not is_distillation(experiment):
        return None
    terms = build_terms(experiment, section)
    experiment.raise_if_any(_unsupported(experiment, terms))
    nets = [load_teacher(experiment, name, student.derived, build_net, files=files) for name in weights_of_teachers(experiment)]
    by_name = {"student": student.net, **{net.name: net.net for net in nets}}
    unknown = ((layer_problem(by_name[side], layer, owner=side), key) for side, layer, key in terms.layers())
    experiment.raise_if_any(dict.fromkeys(Problem(what, key=key) for what, key in unknown if what is not None))
    sizes = [line for net in nets for line in _other_sizes(experiment, student.sizes, net)]
    with experiment.placing("mimic"):
        terms.require_labels(student.example)
        with evaluation_mode(student.net):
            found = inspect_layers(student.net, terms.student_layers, student.example, owner="student", gradients=True)
    experiment.raise_if_any(dict.fromkeys(_constant_layers(terms, found)))
    matches = {net.name: match_classes(net.name, student.class_names, net.class_names) for net in nets}
    teachers = [_build_teacher(experiment, net, matches[net.name], terms, student.example) for net in nets]
    shapes = {teacher.name: teacher.shapes for teacher in teachers}
    experiment.raise_if_any(_misfits(terms, found.shapes, teachers))
    seed_all(key(experiment.config.runtime.random_seed, _ADAPTERS))
    unscored = {name: match.problem for name, match in matches.items() if match.problem}
    return Distillation(
        student.net,
        terms,
        teachers,
        teachers,
        adapters=terms.build_adapters(found.shapes, shapes),
        overwritten=found.overwritten,
        lines=[line for net in nets for line in (*net.lines, matches[net.name].line) if line],
        warnings=[
            *sizes,
            *(line for net in nets for line in _other_values(student.preprocessing, net)),
            *_precise_modes(experiment, section),
            *(f"{why} Only its features are used; it is not scored" for why in unscored.values()),
        ],
        unscored=frozenset(unscored),
        labelled=has_labels(experiment),
    )


def build_terms(experiment: Experiment, section: MimicSection) -> DistillationTerms:
    """Build a term for every job and teacher."""
    terms = []
    for name, job in section.jobs.items():
        place, layers, adapters = key_of_job(experiment, name), job.student.mimic_name, job.student.adapter
        loss = experiment.build(job.cfgs.loss, "mimic_loss", {}, f"{place}.cfgs.loss")
        each = adapters if isinstance(adapters, list) else [adapters] * len(layers)
        for teacher, side in job.teachers.items():
            shown = f"{name}_loss" if len(job.teachers) == 1 else f"{name}_{teacher}_loss"
            pairs = [Pair(*pair) for pair in zip(layers, side.mimic_name, each, strict=True)]
            terms.append(DistillationTerm(shown, name, teacher, loss, pairs, job.loss_weight, job.warm_up_iters, place))
    return DistillationTerms(terms, section.task_loss)


def _build_teacher(
    experiment: Experiment, source: TeacherNet, match: ClassMatch, terms: DistillationTerms, example: Batch
) -> Teacher:
    jobs = mimic_of(experiment).jobs.values()
    by_batch = any(job.teachers[source.name].teacher_bn_mode == "train" for job in jobs if source.name in job.teachers)
    with experiment.placing(source.key):
        layers = terms.layers_of(source.name)
        teacher = Teacher(source.name, source.net, layers, example=example, batch_statistics=by_batch, columns=match.columns)
        if match.problem and (teacher.logits or any(t.loss.of_logits for t in terms.terms if t.teacher == source.name)):
            raise UserError(match.problem)
    return teacher


def _unsupported(experiment: Experiment, terms: DistillationTerms) -> Iterator[Problem]:
    """Find settings of ``runtime`` that exclude distillation, or a loss that takes a gradient before the backward pass."""
    runtime = experiment.config.runtime
    if runtime.parallel == "fsdp":
        fix = "Set ddp: a student with feature hooks cannot be sharded."
        yield Problem(got="fsdp", expected="ddp", key="runtime.parallel", fix=fix)
    for setting in ("compile", "static_graph") if terms.guided_layers else ():
        if getattr(runtime, setting):
            expected = "false with gkd_loss, which computes another gradient at every step"
            yield Problem(got=True, expected=expected, key=f"runtime.{setting}", fix="Leave it out.")


def _constant_layers(terms: DistillationTerms, found: Inspection) -> Iterator[Problem]:
    for side, layer, place in terms.layers():
        if side == "student" and layer in found.constant:
            what = f"no gradient passes through {layer!r}: everything up to it is frozen"
            yield Problem(what, key=place, fix="Name a layer that trains.")


def _misfits(terms: DistillationTerms, student: Shapes, teachers: Sequence[Teacher]) -> Iterator[Problem]:
    """Find layers whose shapes cannot be compared, or whose scores are in another order of classes than the student's."""
    by_name = {teacher.name: teacher for teacher in teachers}
    for term in terms.terms:
        teacher = by_name[term.teacher]
        yield from term.shape_problems(student, teacher.shapes)
        for side, layer, place in term.layers() if term.loss.of_logits and teacher.is_reordered else ():
            if side == teacher.name and layer not in teacher.logits:
                what = f"{layer} returns no logits of the net, and only logits are put into the student's order of classes"
                yield Problem(what, key=place)


def _precise_modes(experiment: Experiment, section: MimicSection) -> Iterator[str]:
    for name, job in section.jobs.items():
        for teacher, side in job.teachers.items():
            if side.teacher_bn_mode == "precise":
                place = f"{key_of_job(experiment, name)}.{teacher}.teacher_bn_mode"
                yield f"{place}: precise means eval here: batch normalization uses the stored statistics"


def _other_values(ours: ImagePreprocessing | None, teacher: TeacherNet) -> Iterator[str]:
    """Warn of a teacher that was trained on images of another mean or standard deviation."""
    if ours is None or teacher.preprocessing is None:
        return
    differing = [each for each in teacher.preprocessing.differences(ours) if each[0] in ("mean", "std")]
    if differing:
        listed = some_of(f"{name} {theirs} (dataset.test: {own})" for name, theirs, own in differing)
        yield f"{teacher.name}: was trained with {listed}. Normalize the student's images alike: the teacher sees the same ones"


def _other_sizes(experiment: Experiment, ours: Mapping[str, Size], teacher: TeacherNet) -> Iterator[str]:
    """Warn of a teacher that was trained on other image sizes. Raises ``ConfigError`` if it cannot take the student's."""
    for phase in PHASES:
        own, theirs = ours.get(phase), teacher.sizes.get(phase)
        if own is None or theirs is None or own == theirs:
            continue
        shown, wanted = "{} x {}".format(*own), "{} x {}".format(*theirs)
        if not teacher.takes_other_sizes:
            what = f"{teacher.name} takes images of {wanted} only, dataset.{phase} makes {shown} (height x width)"
            experiment.raise_if_any([Problem(what, key=teacher.key)])
        yield f"{teacher.name}: its dataset.{phase} made images of {wanted}, the student's makes {shown} (height x width)"
