"""The whole configuration file as frozen, typed sections. Defaults stand here or in the signatures of parts, only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from up.config.argument import AtLeast1, FixedOnResume, Fraction, FreeOnResume, Name, PartOf, Positive
from up.config.section import Part, Section
from up.schema.dataset import DatasetSection
from up.schema.mimic import MimicSection
from up.schema.trainer import TrainerSection


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", name):
        raise ValueError("auto, cpu, cuda, cuda:1, mps or xpu")
    return name


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise ValueError("three numbers such as 1.0.0")
    return text


class Fp16(Section):
    """Settings of float16 training, as older files write them."""

    keep_batchnorm_fp32: bool | None = None
    """Accepted; autocast always keeps batch normalisation in float32."""
    scale_factor: Positive | Literal["dynamic"] = "dynamic"
    """First factor of the loss scaler; ``dynamic`` takes torch's."""


class Dist(Section):
    """How the processes talk to each other."""

    timeout: Positive = 600.0
    """Seconds after which a process that does not answer is given up."""
    backend: Literal["nccl", "gloo"] | None = None
    """Library of the collective operations; unset takes nccl on GPUs and gloo on CPUs."""


class BnInit(Section):
    """Batch normalisation as detection recipes set it."""

    eps: Positive = 1e-3
    """Added to the variance."""
    momentum: Fraction = 0.03
    """Share of a new batch in the running statistics."""


class RuntimeSection(Section):
    """What a run is made on and with; nothing here describes the model or the data."""

    task_names: Annotated[Name, FixedOnResume()] = "cls"
    """The task, or ``kd_<task>`` for its distillation."""
    runner: Annotated[Part, PartOf("runner"), FixedOnResume()] = Part(type="base")
    """What turns a batch into a loss: ``base``, or ``kd`` for distillation."""
    random_seed: Annotated[int, Field(ge=0, lt=2**63), FixedOnResume()] = 131
    """Seed of everything random."""
    rank_init: bool = False
    """Accepted for older files: randomness hangs on the seed, the sample, the step and the rank, which is safe either way."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """``auto`` takes a GPU when there is one; or cpu, cuda, cuda:1, mps, xpu."""
    iter_base: bool = False
    """Frequencies and starts in ``trainer`` count updates and not epochs."""
    fp16: bool | Fp16 = False
    """Train in float16; any truthy value, or a block of settings."""
    amp: Literal["bf16", "fp16"] | None = None
    """Autocast to bfloat16 or float16; wins over ``fp16``."""
    async_norm: bool = False
    """Average the statistics of batch normalisation over the processes before evaluation."""
    special_bn_init: Annotated[bool | BnInit, FixedOnResume()] = False
    """Set eps 1e-3 and momentum 0.03 in every batch normalisation, or the values of a block."""
    aligned: bool = False
    """Accepted for older files; concerns detection."""
    model_helper: Part | None = None
    """Accepted for older files; the ``net`` list is always built the same way."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = True
    """Keep images and convolutions in channels-last memory order, which is faster on most hardware."""
    deterministic: bool = False
    """Use deterministic algorithms only; slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Every process holds the whole model (ddp), or a shard of it (fsdp)."""
    static_graph: bool = False
    """Tell ddp that every step uses the same parameters."""
    allow_dead_parameter: bool = False
    """Let ddp search for parameters that got no gradient; without it they are an error."""
    plugins: list[Name] = []
    """Modules to import that bring tables of their own, such as ``my_lab.parts``."""
    dist: Dist = Dist()
    """Communication between processes."""

    @field_validator("fp16", mode="before")
    @classmethod
    def _any_truthy(cls, value: Any) -> Any:
        return value if isinstance(value, dict | Fp16) and value else bool(value)

    @field_validator("task_names", mode="before")
    @classmethod
    def _only_task(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """The number format of forward and backward: ``amp``, else what ``fp16`` says."""
        return self.amp or ("fp16" if self.fp16 else "fp32")


class SaverSection(Section):
    """What is written where, and what a run starts from: own latest, resume_model, pretrain_model, or from scratch."""

    type: Literal["base"] = "base"
    """The kind of saver; there is one."""
    save_dir: Name | None = None
    """The run folder: checkpoints, logs, status. Unset takes runs/ and the name of the configuration file."""
    results_dir: Name | None = None
    """Folder of evaluation reports; unset takes ``results`` in the run folder."""
    auto_resume: Annotated[bool, FreeOnResume(reported=False)] = True
    """Resume from the newest checkpoint in ``save_dir`` when there is one. With false an earlier run there is set aside in
    ``earlier/N``, and training starts anew."""
    resume_model: Name | None = None
    """Checkpoint to resume from when ``save_dir`` has none: weights, optimizer, step, everything; with or without ``.pth``."""
    pretrain_model: Name | None = None
    """Weights to start from, the EMA weights where there are any: a checkpoint of up or UP, a file of timm's or torchvision's, or
    ``timm:NAME``."""
    skip: list[Name] = []
    """Names of tensors not to load from ``pretrain_model``: a prefix, or ``r:`` and a regular expression."""
    best_without_optimizer: bool = False
    """Write ``ckpt_best.pth`` without the state of the optimizer, a third of the size or less: it can be evaluated, exported and
    fine-tuned from, but no run can resume from it."""
    save_result: bool = False
    """Let ``eval`` also write ``results.txt``, a line for each image."""
    memory_friendly: bool = False
    """Let ``eval`` write a line for each image as it comes, so that an inference which is killed can continue from there."""
    task_type: Name | None = None
    """Accepted for older files; ``runtime.task_names`` says it."""
    accept_data_change: Annotated[bool, FreeOnResume(reported=False)] = False
    """Resume although the data changed since the checkpoint was saved; ``up train --accept-data-change`` sets it."""

    def folder(self, config_file: Path) -> Path:
        """The run folder of the configuration in ``config_file``."""
        return Path(self.save_dir or f"runs/{config_file.stem}")

    @field_validator("resume_model", "pretrain_model", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value


class NetModule(Part):
    """One module of the net; it gets the running record and returns what it adds to it."""

    name: Name
    """The module's name, which begins the names of its tensors."""
    prev: Name | None = None
    """The module whose output planes this one takes; unset takes the one before."""
    freeze_patterns: list[Name] = []
    """Parameters to freeze: a prefix of the name, or ``r:`` and a regular expression; with ``type: self`` of the names in
    the whole net."""

    @model_validator(mode="before")
    @classmethod
    def _net_itself(cls, data: Any) -> Any:
        """``type: self`` is no module: it speaks of the whole net, and its one argument is ``freeze_patterns``."""
        if not isinstance(data, dict) or data.get("type") != "self":
            return data
        kwargs = data.get("kwargs")
        if isinstance(kwargs, dict) and "freeze_patterns" in kwargs:
            rest = {key: value for key, value in kwargs.items() if key != "freeze_patterns"}
            data = {**data, "kwargs": rest, "freeze_patterns": kwargs["freeze_patterns"]}
        return {"name": "self", **data}

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The name first, as one writes it."""
        plain: dict[str, Any] = handler(self)
        return {"name": plain.pop("name"), **plain}


class EmaKwargs(Section):
    """Arguments of the moving average."""

    decay: Fraction = 0.9999
    """Share of the old average that stays."""
    inner_T: AtLeast1 = 1
    """Updates of the optimizer between two of the average."""
    warmup: AtLeast1 = 1
    """With ``linear``, decay grows as (1 + t) / (warmup + t) until it reaches ``decay``."""


class EmaSection(Section):
    """A moving average of the weights, which evaluation and export use when it is enabled."""

    enable: Annotated[bool, FixedOnResume()] = False
    """Keep the average."""
    ema_type: Annotated[Literal["linear", "exp"], FixedOnResume()] = "linear"
    """How decay grows: min(decay, (1 + t) / (warmup + t)), or decay * (1 - exp(-t / 2000))."""
    kwargs: EmaKwargs = EmaKwargs()
    """Decay and warmup."""


class ToKestrelSection(Section):
    """The package for Kestrel: what its files say about the model."""

    toks_type: Literal["cls"] = "cls"
    """The kind of package; there is one."""
    plugin: Name = "classifier"
    """The plug-in of Kestrel that runs the model."""
    model_name: Name = "model"
    """First part of the name of the package."""
    version: Annotated[str, AfterValidator(_version)] = "1.0.0"
    """Version of the model: major.minor.patch."""
    pixel_means: list[float] | None = None
    """Mean of each channel, 0 to 255; unset takes 255 times that of ``normalize``."""
    pixel_stds: list[float] | None = None
    """Standard deviation of each channel, 0 to 255; unset takes 255 times that of ``normalize``."""
    is_rgb: bool = True
    """Channels are red, green, blue."""
    save_all_label: bool = True
    """Report the score of every class."""
    type: str = "UNKNOWN"
    """What is classified."""
    add_softmax: bool = False
    """End the graph with softmax (sigmoid for bce) instead of logits."""
    resize_hw: Annotated[list[AtLeast1], Field(min_length=2, max_length=2)] | str | None = None
    """Height and width of the input; unset takes what the test transforms produce."""
    class_label: dict[str, Any] | None = None
    """Heads with their labels: {name: {calculator, start, end, labels}}; unset takes the classes of the data set."""
    support_labels: list[str] | None = None
    """Labels that the package offers; unset means all."""
    save_to: Name | None = None
    """Folder of the package; unset takes ``--save_to`` or the run's folder."""


_MORE_THAN_EPOCHS = 10_000

Net = Annotated[list[Annotated[NetModule, PartOf("backbone", ("neck", "head", "post_process"))]], Field(min_length=1)]


class Config(Section):
    """A whole configuration file."""

    gathers: ClassVar[dict[str, str]] = {"teachers": r"teacher\w*"}

    runtime: RuntimeSection = RuntimeSection()
    """Device, precision, seed, task."""
    dataset: DatasetSection = DatasetSection()
    """What is trained and evaluated on."""
    trainer: TrainerSection = TrainerSection()
    """How long to train, how often to evaluate and save, the optimizer and the learning rate."""
    saver: SaverSection = SaverSection()
    """What is written where, and what a run starts from."""
    hooks: list[Annotated[Part, PartOf("hook")]] = []
    """What watches the training; hooks never change it."""
    net: Annotated[Net, FixedOnResume()]
    """The modules of the model, in order."""
    ema: EmaSection = EmaSection()
    """Moving average of the weights."""
    teachers: Annotated[dict[str, Net], FixedOnResume()] = {}
    """The nets of the teachers, written as ``teacher``, ``teacher0``, …"""
    mimic: Annotated[MimicSection | None, FixedOnResume()] = None
    """Knowledge distillation."""
    to_kestrel: ToKestrelSection = ToKestrelSection()
    """The package for Kestrel."""

    @property
    def schedule_counts_steps(self) -> bool:
        """Whether ``T_max`` of the schedule is meant in steps: with ``iter_base``, a number that no run has of epochs."""
        schedule = self.trainer.lr_scheduler
        length = schedule.kwargs.get("T_max") if schedule is not None else None
        return self.runtime.iter_base and isinstance(length, int | float) and length >= _MORE_THAN_EPOCHS


SECTIONS = tuple(name for name in Config.model_fields if name != "teachers")


def is_section(name: str) -> bool:
    """Whether a top-level key of this name means something, ``teacher0`` included."""
    return name in SECTIONS or Config.gathered_in(name) is not None
