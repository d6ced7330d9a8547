"""From a checked experiment to what distillation adds to its run: terms, teachers, adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from up.build.data import build_transforms, input_size_of
from up.build.teachers import PHASES, Source, build_source
from up.schema.mimic import MimicJob
from up.schema.sections import Mimic as MimicSection
from up.errors import Problem, UserError
from up.distill.section import is_distillation, key_of_job, weights_of_teachers
from up.tasks.experiment import Experiment
from up.models.net import Net
from up.engine.evaluate import evaluation_mode
from up.engine.step import BatchStage, Mixing, Runner
from up.seed import key, seed_all
from up.distill.mimic import DistillationTerm, HookedStudent, Mimic, Pair
from up.distill.taps import Findings, Taps, tap_problem
from up.distill.teachers import Taught, Teacher, columns_for
from up.text import some_of

_ADAPTERS = 4  # the purpose of the seed that the adapters' first weights are drawn with
_EXAMPLES = 2  # images that show the shapes


@dataclass(frozen=True)
class Teaching:
    """What distillation adds to a run. ``taught`` are the teachers, or the caches before them."""

    mimic: Mimic
    teachers: Sequence[Teacher]
    taught: Sequence[Taught]
    adapters: Mapping[str, tuple[str, nn.Module]]
    overwritten: frozenset[str]  # layers of the student whose tensor a later layer changes in place
    lines: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)
    strangers: frozenset[str] = frozenset()  # teachers of other classes, which only features are taken of

    def hooked(self, student: nn.Module, device: torch.device) -> HookedStudent:
        """The student on its device, and its adapters."""
        taps = Taps(student, self.mimic.layers_of_student(), copied=self.overwritten)
        return HookedStudent(student, self.adapters, taps).to(device)

    def add_adapters_to(self, optimizer: Optimizer) -> None:
        """Let the adapters train as the optimizer does by itself: no rule of ``pconfig`` speaks of them."""
        parameters = [parameter for _, module in self.adapters.values() for parameter in module.parameters()]
        if parameters:
            lr = optimizer.defaults["lr"]
            optimizer.add_param_group({"params": parameters, "lr": lr, "lr_scale": 1.0, "rule": "mimic adapters"})


def runner_of(
    experiment: Experiment,
    net: nn.Module,
    teaching: Teaching | None,
    *,
    stage: BatchStage,
    mix: Mixing | None,
    device: torch.device,
    compiled: bool = False,
) -> Runner:
    """The runner of ``runtime.runner``; one that mimics gets the student with its adapters, and the teachers on its device."""
    runtime = experiment.config.runtime
    facts: dict[str, Any] = {
        "net": net, "loss_of": experiment.task.loss, "stage": stage, "mix": mix, "seed": runtime.random_seed,
    }
    if teaching is not None:
        for teacher in teaching.teachers:
            teacher.to(device, channels_last=runtime.channels_last, compiled=compiled)
        facts |= {"net": teaching.hooked(net, device), "mimic": teaching.mimic, "teachers": teaching.taught}
    runner: Runner = experiment.build(runtime.runner, "runner", facts, "runtime.runner")
    return runner


def told_of(experiment: Experiment, teaching: Teaching | None) -> tuple[list[str], list[str]]:
    """What the log says of the teachers, and what it warns of."""
    config = experiment.config
    lines, warnings = (list(teaching.lines), list(teaching.warnings)) if teaching else ([], [])
    if config.mimic is not None and teaching is None:
        warnings.append(f"mimic: has no effect: runtime.runner.type is {config.runtime.runner.type!r}. For distillation: kd")
    elif config.teachers and teaching is None:
        names = some_of(config.teachers)
        warnings.append(f"{names}: has no effect without mimic. For distillation: a section mimic, and runtime.runner.type: kd")
    unused = [name for name in config.teachers if teaching is not None and name not in {each.name for each in teaching.teachers}]
    if unused:
        warnings.append(f"{some_of(unused)}: in no job of mimic, so not built")
    return lines, warnings


def teaching_of(
    experiment: Experiment, student: Net, data_facts: Mapping[str, Any], class_names: list[str] | None, *, files: bool = True
) -> Teaching | None:
    """Distillation terms and teachers, proved with a batch of noise; None where the runner does not mimic.

    Without ``files`` the teachers' weights are drawn. Nothing is created. Raises ``ConfigError`` for layers that there are
    not, shapes that do not fit and classes that a teacher does not know.
    """
    section = experiment.config.mimic
    if section is None or not is_distillation(experiment):
        return None
    if experiment.config.runtime.parallel == "fsdp":
        what = "got 'fsdp', expected ddp: a student whose layers are tapped is not shared out"
        experiment.raise_if_any([Problem(what, key="runtime.parallel")])
    mimic = mimic_of(experiment, section)
    if mimic.guided_layers:
        experiment.raise_if_any(_hinders_guidance(experiment))
    sources = {name: build_source(experiment, name, data_facts, files=files) for name in weights_of_teachers(experiment)}
    nets = {"student": student, **{name: source.net for name, source in sources.items()}}
    experiment.raise_if_any(_unknown_layers(experiment, section, nets))
    sizes = list(_other_sizes(experiment, sources))
    example = experiment.task.example(student, input_size_of(experiment), _EXAMPLES)
    with experiment.placing("mimic"):
        mimic.require_labels(example)
    findings = _of_student(experiment, student, mimic, example)
    experiment.raise_if_any(_constants(experiment, section, findings))
    by_batch = {name for job in section.jobs.values() for name, tap in job.teachers.items() if tap.teacher_bn_mode == "train"}
    teachers: list[Teacher] = []
    strangers: dict[str, str] = {}
    for name, source in sources.items():
        with experiment.placing(source.place):
            columns, strange = _columns(source, class_names, mimic)
            layers = mimic.layers_of(name)
            teacher = Teacher(name, source.net, layers, example=example, batch_statistics=name in by_batch, columns=columns)
            if strange and teacher.class_scores:
                raise UserError(strange)
        teachers.append(teacher)
        strangers |= {name: strange} if strange else {}
    shapes = {teacher.name: teacher.shapes for teacher in teachers}
    experiment.raise_if_any([*_misfits(experiment, mimic, findings.shapes, shapes), *_out_of_order(experiment, mimic, teachers)])
    seed_all(key(experiment.config.runtime.random_seed, _ADAPTERS))
    lines = [line for source in sources.values() for line in (*source.lines, *classes_line(source, class_names))]
    warnings = [*sizes, *_taken_as_eval(experiment, section)]
    warnings += [f"{why} Only its features are followed; it is not scored" for why in strangers.values()]
    adapters = mimic.build_adapters(findings.shapes, shapes)
    return Teaching(mimic, teachers, teachers, adapters, findings.overwritten, lines, warnings, frozenset(strangers))


def mimic_of(experiment: Experiment, section: MimicSection) -> Mimic:
    """Every job as a term with each of its teachers."""
    terms = []
    for name, job in section.jobs.items():
        loss = experiment.build(job.cfgs.loss, "mimic_loss", {}, f"{key_of_job(experiment, name)}.cfgs.loss")
        for teacher in job.teachers:
            shown = f"{name}_loss" if len(job.teachers) == 1 else f"{name}_{teacher}_loss"
            terms.append(DistillationTerm(shown, name, teacher, loss, _pairs(job, teacher), job.loss_weight, job.warm_up_iters))
    return Mimic(terms, section.task_loss)


def _hinders_guidance(experiment: Experiment) -> Iterator[Problem]:
    """Settings with which the gradient of the task loss cannot be had before the backward pass."""
    for setting in ("compile", "static_graph"):
        if getattr(experiment.config.runtime, setting):
            what = "got true, expected false with gkd_loss, which takes a gradient of its own at every step. Leave it out"
            yield Problem(what, key=f"runtime.{setting}")


def _pairs(job: MimicJob, teacher: str) -> list[Pair]:
    given = job.student.adapter
    adapters = given if isinstance(given, list) else [given] * len(job.student.mimic_name)
    return [
        Pair(ours, theirs, adapter)
        for ours, theirs, adapter in zip(job.student.mimic_name, job.teachers[teacher].mimic_name, adapters, strict=True)
    ]


def _unknown_layers(experiment: Experiment, section: MimicSection, nets: Mapping[str, Net]) -> Iterator[Problem]:
    for name, job in section.jobs.items():
        layers = {"student": job.student.mimic_name, **{teacher: tap.mimic_name for teacher, tap in job.teachers.items()}}
        for side, named in layers.items():
            for index, layer in enumerate(named):
                what = tap_problem(nets[side], layer, owner=side)
                if what is not None:
                    yield Problem(what, key=f"{key_of_job(experiment, name)}.{side}.mimic_name.{index}")


def _of_student(experiment: Experiment, student: Net, mimic: Mimic, example: Mapping[str, Any]) -> Findings:
    taps = Taps(student, mimic.layers_of_student())
    try:
        with experiment.placing("mimic"), evaluation_mode(student):
            return taps.examine(lambda: student(example), owner="student", gradients=True)
    finally:
        taps.remove()  # putting the net on its device may replace the modules that they are in


def _misfits(experiment: Experiment, mimic: Mimic, student: Mapping[str, Any], teachers: Mapping[str, Any]) -> Iterator[Problem]:
    for term in mimic.terms:
        for index, what in term.refusals(student, teachers[term.teacher]):
            yield Problem(what, key=f"{key_of_job(experiment, term.job)}.{term.teacher}.mimic_name.{index}")


def _columns(source: Source, ours: list[str] | None, mimic: Mimic) -> tuple[list[int] | None, str]:
    """The teacher's classes in the order of the student's, if they must be moved; and why they cannot be matched.

    Raises ``UserError`` for the latter where classes are compared.
    """
    try:
        return columns_for(source.name, ours, source.class_names), ""
    except UserError as error:
        if mimic.compares_classes(source.name):
            raise
        return None, str(error)


def classes_line(source: Source, ours: list[str] | None) -> Iterator[str]:
    """How the classes of a teacher are matched with the student's, where that is not plain."""
    theirs = source.class_names
    if ours is None or theirs is None:
        which = "neither names them" if ours is theirs else f"{'the data set' if ours is None else 'its file'} does not name them"
        yield f"{source.name}: its classes are matched with the student's by number: {which}"
    elif set(ours) <= set(theirs) and list(ours) != list(theirs):
        left_out = f"; left out: {len(theirs) - len(ours)} of {len(theirs)}" if len(theirs) > len(ours) else ""
        yield f"{source.name}: its scores are put into the student's order of classes, by their names{left_out}"


def _out_of_order(experiment: Experiment, mimic: Mimic, teachers: Sequence[Teacher]) -> Iterator[Problem]:
    """Layers whose scores would be compared class by class, in an order that is not the student's."""
    by_name = {teacher.name: teacher for teacher in teachers}
    for term in mimic.terms:
        teacher = by_name[term.teacher]
        for index, pair in enumerate(term.pairs):
            if term.loss.of_logits and teacher.is_reordered and pair.teacher not in teacher.class_scores:
                what = f"{pair.teacher} gives no logits of the net, and only those are put into the student's order of classes"
                yield Problem(what, key=f"{key_of_job(experiment, term.job)}.{term.teacher}.mimic_name.{index}")


def _taken_as_eval(experiment: Experiment, section: MimicSection) -> Iterator[str]:
    for name, job in section.jobs.items():
        for teacher, tap in job.teachers.items():
            if tap.teacher_bn_mode == "precise":
                place = f"{key_of_job(experiment, name)}.{teacher}.teacher_bn_mode"
                yield f"{place}: precise is taken as eval: the statistics are those that the teacher has stored"


def _constants(experiment: Experiment, section: MimicSection, findings: Findings) -> Iterator[Problem]:
    """Layers of the student that no gradient would pass through."""
    for name, job in section.jobs.items():
        for index, layer in enumerate(job.student.mimic_name):
            if layer in findings.constant:
                what = f"no gradient passes through {layer!r}: everything up to it is frozen. Tap a layer that trains"
                yield Problem(what, key=f"{key_of_job(experiment, name)}.student.mimic_name.{index}")


def _other_sizes(experiment: Experiment, sources: Mapping[str, Source]) -> Iterator[str]:
    """Warnings of teachers that saw images of other sizes. Raises ``ConfigError`` for one that cannot take them."""
    for phase in PHASES:
        if getattr(experiment.config.dataset, phase) is None:
            continue
        spec = experiment.task.input_spec(build_transforms(experiment, phase))
        ours = spec.fixed if spec is not None else None
        for source in sources.values():
            theirs = source.sizes.get(phase)
            if ours is None or theirs is None or ours == theirs:
                continue
            shown, wanted = "{} x {}".format(*ours), "{} x {}".format(*theirs)
            if not source.takes_others:
                what = f"{source.name} takes images of {wanted} only, dataset.{phase} makes {shown} (height x width)"
                experiment.raise_if_any([Problem(what, key=source.place)])
            yield f"{source.name}: its dataset.{phase} made images of {wanted}, the student's makes {shown} (height x width)"
