"""Build the network of an experiment, load its initial weights, and move it to its device."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from up.build.data import channels_of, input_size_of, input_spec_of, preprocessing_of_images, spec_after
from up.config.parts import DerivedArguments
from up.config.tree import DEFAULT
from up.distill.build import Distillation, Student, build_distillation
from up.distill.section import is_distillation
from up.distributed import group
from up.distributed.group import is_parallel
from up.engine.parallel import blocks_of
from up.engine.precision import Precision, fast_mode
from up.errors import Problem, UserError
from up.models.adapter import recompute_activations
from up.models.backbones import BACKBONES
from up.models.init import start_small
from up.models.net import FREEZE_KEY, Net
from up.models.norm import special_bn_init, sync_batchnorms
from up.models.onednn import compute_in_float32_where_bf16_is_wrong, keep_narrow_shortcuts_contiguous
from up.models.patterns import require_matches
from up.models.pretrained import preprocessing_of, variant_needed
from up.models.regions import compile_regions
from up.models.weights import load_weights, read_state
from up.process_memory import keep_freed_memory
from up.schema.sections import Fp16
from up.schema.sections import Net as NetSection
from up.seed import key, seed_all
from up.tasks.experiment import Experiment, net_kind
from up.text import some_of

WISE_FT_FROM_RANDOM = (
    "finetune.wise_ft: the head starts afresh, so that weights near the start (small alpha) predict poorly; a linear probe gives a "
    "start that predicts: finetune: {probe: {epochs: 3, lr: 1e-3}}, or strategy: lp_ft"
)
EXAMPLES = 2  # images of noise to find shapes
_NET = 3  # the purpose of the seed that a network's first weights are drawn with


def build_net(
    experiment: Experiment,
    derived: DerivedArguments,
    section: NetSection | None = None,
    place: str = "net",
    weights: str | None = None,
) -> Net:
    """Build the network of a ``net`` list, its initial weights drawn from the run's seed alone.

    ``derived`` are arguments derived from the data. ``section`` is a teacher's list, and ``weights`` names the file that the
    teacher will be loaded from.
    """
    runtime, entries = experiment.config.runtime, section or experiment.config.net
    variant = variant_needed(experiment.config.saver.pretrain_model if section is None else weights)
    seed_all(key(runtime.random_seed, _NET))
    modules: dict[str, nn.Module] = {}
    spec, channels = input_spec_of(experiment), channels_of(experiment)
    previous = ""
    for index, entry in enumerate(entries):
        if entry.type == "self":
            continue
        kind = net_kind(experiment, entry)
        with experiment.placing(f"{place}.{index}"):
            known = experiment.task.derived_for_module(kind, derived, modules.get(entry.prev or previous), entry)
        if kind == "backbone" and spec is not None and spec.fixed:
            # for those whose position embeddings depend on it, the second in networks of timm
            known = {"img_size": list(spec.fixed), "image_size": spec.fixed}
        if kind == "backbone" and channels != 3:
            known = {**known, "input_channel": channels, "in_chans": channels}  # in our networks and in timm's
        if entry.type in BACKBONES and variant is not None:
            known = {**known, "variant": variant}
        modules[entry.name] = experiment.build(entry, kind, known, f"{place}.{index}")
        if kind == "backbone" and place == "net":
            _recompute_if_asked(experiment, modules[entry.name])
        previous = entry.name
    with experiment.placing(place):
        net = Net(list(modules.items()), prev={entry.name: entry.prev for entry in entries if entry.prev})
    _freeze(experiment, net, entries, place)
    if runtime.special_bn_init:
        values = runtime.special_bn_init
        special_bn_init(net) if values is True else special_bn_init(net, eps=values.eps, momentum=values.momentum)
    return net


def _recompute_if_asked(experiment: Experiment, backbone: nn.Module) -> None:
    """Checkpoint gradients if the hook ``memory_checkpoint`` asks for it: older files have it among the hooks."""
    for index, part in enumerate(experiment.config.hooks):
        if part.type == "memory_checkpoint" and part.kwargs.get("enable", True):
            with experiment.placing(f"hooks.{index}"):
                recompute_activations(backbone)


def _freeze(experiment: Experiment, net: Net, entries: NetSection, place: str) -> None:
    """Freeze what ``freeze_patterns`` match. Raises ``ConfigError`` with the lines of all that match nothing."""
    names = [name for name, _ in (*net.named_parameters(), *net.named_buffers())]
    patterns: list[str] = []
    problems: list[Problem] = []
    for index, entry in enumerate(entries):
        is_net, prefix, path = entry.type == "self", f"{entry.name}.", f"{place}.{index}.{FREEZE_KEY}"
        if is_net and experiment.decoded.origins.of(path) == DEFAULT:
            path = f"{place}.{index}.kwargs.{FREEZE_KEY}"
        known = names if is_net else [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        for number, pattern in enumerate(entry.freeze_patterns):
            try:
                require_matches([pattern], known, key=f"{path}.{number}")
            except UserError as error:
                problems += error.problems
            patterns.append(pattern if is_net else _own_pattern(entry.name, pattern))
    experiment.raise_if_any(problems)
    with experiment.placing(place):
        net.freeze(patterns)


def _own_pattern(name: str, pattern: str) -> str:
    """Turn a freeze pattern of a module into a pattern of the whole net."""
    if not pattern.startswith("r:"):
        return f"{name}.{pattern}"
    between, own = ("", pattern[3:]) if pattern.startswith("r:^") and "|" not in pattern else (".*", pattern[2:])
    return rf"r:^{re.escape(name)}\.{between}(?:{own})"


def load_start_weights(experiment: Experiment, net: Net, class_names: list[str] | None) -> list[str]:
    """Load ``saver.pretrain_model`` into the net, if it is set; returns lines that report every tensor."""
    saver = experiment.config.saver
    if saver.pretrain_model is None:
        return []
    task = experiment.task
    heads = [module for module in experiment.config.net if net_kind(experiment, module) in task.fresh_kinds]
    fresh = {module.name: task.class_layer for module in heads}
    report = load_weights(net, read_state(saver.pretrain_model), skip=saver.skip, heads=fresh, class_names=class_names)
    if task.class_layer:
        own = tuple(f"{head.name}.{task.class_layer}." for head in heads if head.kwargs.get("initializer") is None)
        start_small(net, {name for name in report.reinitialised if name.startswith(own)})
    finetune = experiment.config.finetune
    is_random = finetune is not None and finetune.wise_ft is not None and finetune.probe is None and report.reinitialised
    return [*report.lines(), *([WISE_FT_FROM_RANDOM] if is_random else [])]


def preprocessing_doubts(experiment: Experiment) -> list[Problem]:
    """Warn of test transforms that differ from the preprocessing of ``saver.pretrain_model``, where both are known."""
    source, ours = experiment.config.saver.pretrain_model, preprocessing_of_images(experiment)
    theirs = preprocessing_of(source) if source is not None and ours is not None else None
    if theirs is None or ours is None:
        return []
    listed = [f"{name} {expected} (dataset.test: {found})" for name, expected, found in theirs.differences(ours)]
    fix = "Set the same in the transforms of train and test, unless another preprocessing is meant."
    return [Problem(f"{source} was trained with {some_of(listed)}. {fix}", key="saver.pretrain_model")] if listed else []


def distillation_of(
    experiment: Experiment, net: Net, derived: DerivedArguments, class_names: list[str] | None, *, files: bool = True
) -> Distillation | None:
    """Build the distillation of the student ``net``; None if the runner does not distil."""
    config = experiment.config
    if config.mimic is None or not is_distillation(experiment):
        return None
    example = experiment.task.example(net, input_size_of(experiment), EXAMPLES)
    specs = {"train": spec_after("train", experiment), "test": spec_after("test", experiment)}
    sizes = {phase: spec.fixed for phase, spec in specs.items() if spec is not None and spec.fixed}

    def build_teacher(name: str, file: str | None, known: Mapping[str, object]) -> Net:
        return build_net(experiment, known, config.teachers[name], name, file)

    student = Student(net, class_names, derived, example, sizes, preprocessing_of_images(experiment))
    return build_distillation(experiment, student, build_teacher, files=files)


def select_device(experiment: Experiment) -> torch.device:
    """Return the device of ``runtime.device`` for this rank and make it ready. Raises ``UserError`` if it is not available."""
    with experiment.placing("runtime.device"):
        device = group.device_for(experiment.config.runtime.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()
    return device


def to_device(experiment: Experiment, net: Net, device: torch.device) -> Net:
    """Move the net to the device, in its memory format."""
    net.to(device)
    if experiment.config.runtime.channels_last:
        net.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            keep_narrow_shortcuts_contiguous(net)
    if device.type == "cpu" and experiment.config.runtime.precision == "bf16":
        compute_in_float32_where_bf16_is_wrong(net)
    return net


def synchronize_and_compile(experiment: Experiment, net: Net, *, trains: bool = False) -> list[str]:
    """Synchronise batch norms and compile the net, in place, where the configuration says so; returns remarks for the log.

    The ranks have joined. A net that ``trains`` may be sharded afterwards.
    """
    sync_batchnorms(net)
    runtime = experiment.config.runtime
    gathered = frozenset(blocks_of(net)) if trains and runtime.parallel == "fsdp" and is_parallel() else frozenset()
    eager = [] if runtime.compile_mode is None else compile_regions(net, runtime.compile_mode, gathered)
    names = [name for name in eager if next(net[name].parameters(), None) is not None]
    what = "is not compiled: its class does not name the tensors that it reads (`reads`, docs/add_a_part.md)"
    return [f"runtime.compile: {name} {what}" for name in names]


def precision_of(experiment: Experiment, device: torch.device) -> Precision:
    """Return the number format of forward and backward passes."""
    runtime = experiment.config.runtime
    factor = runtime.fp16.scale_factor if isinstance(runtime.fp16, Fp16) else "dynamic"
    mode = None if runtime.precision == "fp32" else runtime.precision
    if runtime.amp == "auto" and device.type != "cpu":  # training on a CPU measures, and records its choice
        mode = fast_mode(device)[0]
    with experiment.placing("runtime.amp"):
        return Precision(mode=mode, device=device, scale_factor=factor)
