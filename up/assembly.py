"""From a checked experiment to built parts, and to the run that the loop trains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from up import distributed
from up.config.decode import missing_for_training
from up.config.parts import build_part
from up.config.sections import Fp16, Part, SchedulePart, Source
from up.config.sections import Net as NetSection
from up.config.show import effective_yaml
from up.data.loader import EvalLoader, TrainLoader, Workers
from up.data.sampler import EvalBatches, TrainBatches
from up.errors import NumericalError, StorageError, UserError
from up.experiment import Experiment, missing_files, net_table
from up.files import write_text
from up.models.net import Net
from up.models.norm import special_bn_init, sync_batchnorms
from up.models.weights import load_weights, read_state
from up.optim import build_optimizer, build_schedule
from up.optim.schedules import Schedule
from up.runner.checkpoint import CheckpointFolder
from up.runner.clip import Clip, ClipNorm, NoClip
from up.runner.display import Display, show_log_on
from up.runner.ema import build_ema
from up.runner.evaluate import Evaluation
from up.runner.every import Every
from up.runner.folder import Status, open_run_folder, set_earlier_run_aside, write_status
from up.runner.hooks import Hook, Hooks, Outline
from up.runner.log import LOGGER, MetricsFile, TensorBoard, log_to
from up.runner.precision import Precision
from up.runner.run import Facts, Run
from up.runner.runner import Runner
from up.runner.start_log import start_lines
from up.runner.stop import StopRequest
from up.seed import key, seed_all

_NET = 3  # the purpose of the seed that a network's first weights are drawn with


def build_dataset(experiment: Experiment, source: Literal["train", "test"], facts: Mapping[str, Any] | None = None) -> Any:
    """The data set of ``dataset.train`` or ``dataset.test``, its meta files read and checked."""
    section = section_of(experiment, source)
    supply = {"seed": experiment.config.runtime.random_seed, "train": source == "train", **(facts or {})}
    return build_part(section.dataset, "dataset", experiment.tables, supply, f"dataset.{source}.dataset")


def section_of(experiment: Experiment, source: Literal["train", "test"]) -> Source:
    """The section of a source. Raises ``UserError`` when the file has none."""
    section = getattr(experiment.config.dataset, source)
    if section is None:
        raise UserError(
            f"{experiment.path}: dataset.{source}: is missing. It says what to {'train' if source == 'train' else 'test'} on."
        )
    return section  # type: ignore[no-any-return]


def build_transforms(experiment: Experiment, source: Literal["train", "test"]) -> list[Any]:
    """The transforms of a source alone, without its images."""
    place = f"dataset.{source}.dataset.kwargs.transformer"
    listed = section_of(experiment, source).dataset.kwargs.get("transformer") or []
    return [build_part(part, "transform", experiment.tables, {}, f"{place}.{index}") for index, part in enumerate(listed)]


def build_reader(experiment: Experiment, source: Literal["train", "test"]) -> Any:
    """The image reader of a source, for images that are named in full."""
    part = Part.model_validate(section_of(experiment, source).dataset.kwargs["image_reader"])
    anywhere = {name: value for name, value in part.kwargs.items() if name != "image_dir"}
    return build_part(Part(type=part.type, kwargs=anywhere), "image_reader", experiment.tables)


def input_size_of(experiment: Experiment) -> tuple[int, int]:
    """Height and width of what the net gets: what the test transforms produce, else those of training."""
    dataset = experiment.config.dataset
    for source in [name for name in ("test", "train") if getattr(dataset, name) is not None]:
        size = experiment.plugin.input_size(build_transforms(experiment, source))
        if size is not None:
            return size
    raise UserError(
        f"{experiment.path}: dataset.test.dataset.kwargs.transformer: leaves every image its own size. "
        "Expected it to contain torch_center_crop, or torch_resize with [height, width]."
    )


def build_net(experiment: Experiment, data_facts: Mapping[str, Any], section: NetSection | None = None, place: str = "net") -> Net:
    """The network of a ``net`` list, its first weights drawn from the run's seed alone."""
    runtime, plugin = experiment.config.runtime, experiment.plugin
    seed_all(key(runtime.random_seed, _NET))
    modules: dict[str, nn.Module] = {}
    freeze: list[str] = []
    previous = ""
    for index, entry in enumerate(section or experiment.config.net):
        freeze += (
            entry.freeze_patterns
            if entry.type == "self"
            else [own_pattern(entry.name, pattern) for pattern in entry.freeze_patterns]
        )
        if entry.type == "self":
            continue
        table = net_table(experiment.tables, entry)
        facts = plugin.module_facts(table, data_facts, modules.get(entry.prev or previous), entry.kwargs)
        modules[entry.name] = build_part(entry, table, experiment.tables, facts, f"{place}.{index}")
        previous = entry.name
    earlier = {entry.name: entry.prev for entry in section or experiment.config.net if entry.prev}
    net = Net(list(modules.items()), prev=earlier, freeze_patterns=freeze)
    if runtime.special_bn_init:
        values = runtime.special_bn_init
        special_bn_init(net) if values is True else special_bn_init(net, eps=values.eps, momentum=values.momentum)
    return net


def own_pattern(name: str, pattern: str) -> str:
    """A freeze pattern of one module as a pattern of the whole net."""
    return rf"r:^{re.escape(name)}\..*(?:{pattern[2:]})" if pattern.startswith("r:") else f"{name}.{pattern}"


@dataclass(frozen=True)
class Timetable:
    """How long a run is, in updates, and when it evaluates and saves."""

    updates_per_epoch: int
    total: int
    evaluate: Every
    save: Every


def timetable(experiment: Experiment, updates_per_epoch: int) -> Timetable:
    """The timetable of ``trainer``: epochs, or updates where ``runtime.iter_base`` says so."""
    trainer = experiment.config.trainer
    total = trainer.max_iter or (trainer.max_epoch or 0) * updates_per_epoch
    unit = 1 if experiment.config.runtime.iter_base else updates_per_epoch
    evaluate = Every(trainer.eval_interval or trainer.test_freq * unit, max(0, trainer.test_start) * unit, total)
    period = min(trainer.save_freq, trainer.save_latest_freq or trainer.save_freq) * unit
    return Timetable(updates_per_epoch, total, evaluate, Every(period, max(0, trainer.save_start) * unit, total))


def schedule_of(experiment: Experiment, updates_per_epoch: int, total: int, global_batch_size: int) -> Schedule:
    """The learning rate as a function of the step; constant where no scheduler is named."""
    trainer = experiment.config.trainer
    part = trainer.lr_scheduler or SchedulePart(type="constant", warmup_register_type="no_scale_lr")
    return build_schedule(
        base_lr=float(trainer.optimizer.kwargs["lr"]) if trainer.optimizer else 0.0, updates_per_epoch=updates_per_epoch,
        total_updates=total, global_batch_size=global_batch_size, **part.model_dump(),
    )  # fmt: skip


def optimizer_of(experiment: Experiment, net: Net) -> Optimizer:
    """The optimizer over the parameters that train, in groups."""
    part = experiment.config.trainer.optimizer
    assert part is not None, "missing_for_training comes first"
    special = [group.model_dump(exclude_none=True) for group in part.special_param_group]
    rules = part.pconfig.model_dump(exclude_none=True)
    return build_optimizer(net, part.type, pconfig=rules, special_param_group=special, **part.kwargs)


def load_start_weights(experiment: Experiment, net: Net, class_names: list[str] | None) -> None:
    """Fill the net from ``saver.pretrain_model``, if one is named, and log what became of every tensor."""
    saver = experiment.config.saver
    if saver.pretrain_model is None:
        return
    report = load_weights(net, read_state(saver.pretrain_model), skip=saver.skip, class_names=class_names)
    for line in report.lines():
        LOGGER.info(line)


def on_device(experiment: Experiment, net: Net, device: torch.device) -> nn.Module:
    """Move the net to the device in its memory format and return what is to be called: compiled where asked for."""
    runtime = experiment.config.runtime
    net.to(device)
    sync_batchnorms(net)
    if runtime.channels_last:
        net.to(memory_format=torch.channels_last)
    if runtime.compile:
        net.compile()  # in place: names in the state dict stay as they are
    return net


def precision_of(experiment: Experiment, device: torch.device) -> Precision:
    """The number format of forward and backward passes."""
    runtime = experiment.config.runtime
    factor = runtime.fp16.scale_factor if isinstance(runtime.fp16, Fp16) else "dynamic"
    return Precision(mode=None if runtime.precision == "fp32" else runtime.precision, device=device, scale_factor=factor)


def build_hooks(experiment: Experiment) -> tuple[list[Hook], Clip]:
    """The hooks that watch, and the policy of clipping, which older files write among them."""
    trainer = experiment.config.trainer
    listed = enumerate(experiment.config.hooks)
    built = [build_part(part, "hook", experiment.tables, {}, f"hooks.{index}") for index, part in listed]
    policies: list[Clip] = [part for part in built if not isinstance(part, Hook)]
    if trainer.clip_norm is not None:
        policies.append(ClipNorm(max_norm=trainer.clip_norm))
    if len(policies) > 1:
        raise UserError(
            f"{experiment.path}: the gradients would be clipped twice: keep one of trainer.clip_norm and the hook grad_clipper."
        )
    return [part for part in built if isinstance(part, Hook)], policies[0] if policies else NoClip()


def train_batches(experiment: Experiment, dataset: Any) -> TrainBatches:
    """The order of the training data, cut into updates for this rank."""
    section = section_of(experiment, "train")
    kwargs, loader = section.batch_sampler.kwargs, section.dataloader.kwargs
    sampler = kwargs.sampler or Part(type="dist")
    facts = {
        "size": len(dataset),
        "labels": dataset.label_sets,
        "seed": experiment.config.runtime.random_seed,
        "shuffle": loader.shuffle,
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    return TrainBatches(
        build_part(sampler, "sampler", experiment.tables, facts, "dataset.train.batch_sampler.kwargs.sampler"),
        batch_size=kwargs.batch_size, accumulate=experiment.config.trainer.accumulate,
        rank=distributed.rank(), world_size=distributed.world_size(),
        drop_last=kwargs.drop_last if loader.drop_last is None else loader.drop_last,
    )  # fmt: skip


def workers_of(source: Source) -> Workers:
    """How the batches of a source are fetched."""
    kwargs = source.dataloader.kwargs
    return Workers(num_workers=kwargs.num_workers, pin_memory=kwargs.pin_memory, fork_method=kwargs.fork_method)


def build_evaluation(
    experiment: Experiment, train_facts: Mapping[str, Any], device: torch.device, precision: Precision
) -> tuple[Evaluation, Any]:
    """The evaluation on ``dataset.test``, and its data set."""
    plugin, section = experiment.plugin, section_of(experiment, "test")
    dataset = build_dataset(experiment, "test", train_facts)
    batches = EvalBatches(
        len(dataset),
        batch_size=section.batch_sampler.kwargs.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    stage = plugin.device_stage(dataset, device, experiment.config.runtime.channels_last)
    loader = EvalLoader(dataset, batches, workers=workers_of(section), collate=plugin.collate)
    return Evaluation(loader, stage, plugin.make_evaluator(dataset), precision), dataset


def assemble(experiment: Experiment, stop: StopRequest) -> Run:
    """Build everything that training needs. Raises ``UserError`` before anything is created where the input is wrong."""
    config, plugin = experiment.config, experiment.plugin
    experiment.refuse([*missing_for_training(config), *missing_files(experiment)])
    device = distributed.device_for(config.runtime.device)
    distributed.join(device, timeout_s=config.runtime.dist.timeout, backend=config.runtime.dist.backend)
    precision = precision_of(experiment, device)
    train_data = build_dataset(experiment, "train")
    names, facts = plugin.class_names(train_data), plugin.data_facts(train_data)
    source = section_of(experiment, "train")
    batches = train_batches(experiment, train_data)
    times = timetable(experiment, batches.updates_per_epoch)
    schedule = schedule_of(experiment, times.updates_per_epoch, times.total, batches.global_batch_size)
    evaluation = None
    if config.trainer.is_eval and config.dataset.test is not None:
        evaluation, _ = build_evaluation(experiment, plugin.later_data_facts(train_data), device, precision)
    net = build_net(experiment, facts)
    batch_fn = source.dataloader.kwargs.batch_fn
    mix = plugin.mixing(train_data, build_part(batch_fn, "batch_fn", experiment.tables, facts) if batch_fn else None)
    stage = plugin.device_stage(train_data, device, config.runtime.channels_last)
    watching, clip = build_hooks(experiment)

    checkpoints, resume_from = open_checkpoints(experiment)
    if resume_from is None:
        load_start_weights(experiment, net, names)
    called = on_device(experiment, net, device)
    optimizer = optimizer_of(experiment, net)
    for line in start_lines(net, optimizer):
        LOGGER.info(line)
    outline = Outline(
        experiment.folder, net, times.total, times.updates_per_epoch, batches.global_batch_size, names,
        sample_batch=evaluation.first_batch if evaluation else None,
    )  # fmt: skip
    workers = workers_of(source)
    return Run(
        outline=outline,
        facts=Facts(
            effective_yaml(config), train_data.fingerprint(), config.runtime.random_seed, batches.global_batch_size, names,
            config.saver.accept_data_change,
        ),
        runner=Runner(called, loss_of=plugin.loss_of, stage=stage, mix=mix, seed=config.runtime.random_seed),
        optimizer=optimizer, schedule=schedule, precision=precision, clip=clip,
        ema=build_ema(net, enable=config.ema.enable, ema_type=config.ema.ema_type, kwargs=config.ema.kwargs.model_dump()),
        loader_from=lambda step: TrainLoader(
            train_data, batches, start_step=step, end_step=times.total, workers=workers, collate=plugin.collate
        ),
        evaluation=evaluation, evaluate_every=times.evaluate, save_every=times.save,
        checkpoints=checkpoints, resume_from=resume_from, hooks=Hooks([*standing_hooks(experiment), *watching]), stop=stop,
    )  # fmt: skip


def open_checkpoints(experiment: Experiment) -> tuple[CheckpointFolder, Path | None]:
    """Make the run folder ready; returns its checkpoints and the one to go on from, if any.

    Own latest (``auto_resume``) before ``resume_model`` before a fresh start, for which an earlier run's files are set aside.
    """
    saver, trainer, folder = experiment.config.saver, experiment.config.trainer, experiment.folder
    keep_last = 2 if trainer.only_save_latest else trainer.keep_last
    text = effective_yaml(experiment.config)
    checkpoints = CheckpointFolder(folder, keep_last=keep_last, config_sha256=sha256(text.encode()).hexdigest())
    resume_from = Path(saver.resume_model) if saver.resume_model else None
    if resume_from is not None and not resume_from.is_file():
        raise UserError(f"{experiment.path}: saver.resume_model: {resume_from}: no such checkpoint.")
    if distributed.is_main():
        open_run_folder(folder)
        checkpoints.sweep()
    own, passed_over = checkpoints.newest() if saver.auto_resume else (None, [])
    distributed.barrier()
    aside = None
    if distributed.is_main() and own is None and not (resume_from and resume_from.parent.resolve() == folder.resolve()):
        aside = set_earlier_run_aside(folder)
    if distributed.is_main():
        write_text(folder / "config.yaml", text)
    log_to(folder)
    show_log_on(console_of_run())
    for line in [*passed_over, *([f"an earlier run was set aside in {aside}"] if aside else [])]:
        LOGGER.warning(line)
    for note in experiment.decoded.notes:
        LOGGER.warning(str(note))
    return checkpoints, own or resume_from


@cache
def console_of_run() -> Console:
    """The terminal that progress bar and log lines share."""
    return Console(stderr=True)


def standing_hooks(experiment: Experiment) -> list[Hook]:
    """What every run shows and writes, on the main rank."""
    if not distributed.is_main():
        return []
    every = experiment.config.trainer.log_interval
    tensorboard = [] if any(hook.type == "train_val_logger" for hook in experiment.config.hooks) else [TensorBoard(freq=every)]
    return [Display(every=every, console=console_of_run()), MetricsFile(freq=every), *tensorboard]


@contextmanager
def record_failure(run: Run) -> Iterator[None]:
    """Write into ``status.json`` what ended the run before its time."""
    try:
        yield
    except (UserError, NumericalError, StorageError) as error:
        if distributed.is_main():
            write_status(run.outline.folder, Status("failed", exit_code=error.exit_code, step=run.step, reason=str(error)))
        run.hooks.on_end(run.step, "failed")
        raise
