"""The whole configuration file as frozen, typed sections. Defaults are here or in the signatures of parts only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from up.config.argument import AtLeast1, FixedOnResume, Fraction, FreeOnResume, Name, PartOf, Positive
from up.config.section import Part, Section
from up.schema.dataset import DatasetSection
from up.schema.finetune import FinetuneSection
from up.schema.mimic import MimicSection
from up.schema.search import SearchSection
from up.schema.trainer import TrainerSection
from up.types import Record


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", name):
        raise ValueError("auto, cpu, cuda, cuda:1, mps or xpu")
    return name


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise ValueError("three numbers such as 1.0.0")
    return text


class Fp16(Section):
    """Settings of float16 training."""

    keep_batchnorm_fp32: bool | None = None
    """Accepted; autocast always keeps batch normalisation in float32."""
    scale_factor: Positive | Literal["dynamic"] = "dynamic"
    """Initial factor of the loss scaler; ``dynamic`` uses torch's."""


CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
REPLAYING: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")
"""The modes that replay CUDA graphs, whose outputs the next replay overwrites."""


class Compile(Section):
    """Settings of torch.compile."""

    mode: CompileMode = "default"
    """``reduce-overhead`` replays CUDA graphs, for small nets on a GPU; ``max-autotune`` does so too, and measures kernels before,
    which takes minutes; ``max-autotune-no-cudagraphs`` only measures."""


class Dist(Section):
    """Communication between processes."""

    timeout: Positive = 600.0
    """Timeout of collective operations, in seconds."""
    backend: Literal["nccl", "gloo"] | None = None
    """Library of collective operations; unset uses nccl on GPUs and gloo on CPUs."""


class BnInit(Section):
    """Settings of batch normalisation, with the values of detection recipes."""

    eps: Positive = 1e-3
    """Added to the variance."""
    momentum: Fraction = 0.03
    """Share of a new batch in the running statistics."""


class RuntimeSection(Section):
    """Task, device, precision, seed and plug-ins of a run."""

    task_names: Annotated[Name, FixedOnResume()] = "cls"
    """The task, or ``kd_<task>`` for its distillation."""
    runner: Annotated[Part, PartOf("runner"), FixedOnResume()] = Part(type="base")
    """Training step, from a batch to a loss: ``base``, ``kd`` for distillation, ``darts`` or ``cars`` for a search of networks."""
    random_seed: Annotated[int, Field(ge=0, lt=2**63), FixedOnResume()] = 131
    """Seed of all random numbers."""
    rank_init: bool = False
    """Accepted for older files: random numbers depend on seed, sample, step and rank, which is safe with either value."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """``auto`` uses a GPU if there is one; or cpu, cuda, cuda:1, mps, xpu."""
    iter_base: bool = False
    """Frequencies and starts in ``trainer`` count steps, not epochs."""
    fp16: bool | Fp16 = False
    """Train in float16; any truthy value, or a block of settings."""
    amp: Literal["bf16", "fp16", "auto"] | None = None
    """Autocast to bfloat16 or float16; overrides ``fp16``. ``auto`` is what a GPU has tensor cores for, bf16 before fp16; on a CPU
    bf16 if a step is measured to be faster, else float32."""
    async_norm: bool = False
    """Average the statistics of batch normalisation over the processes before evaluation."""
    special_bn_init: Annotated[bool | BnInit, FixedOnResume()] = False
    """Set eps 1e-3 and momentum 0.03 in every batch normalisation, or the values of a block."""
    aligned: bool = False
    """Accepted for older files, for detection."""
    model_helper: Part | None = None
    """Accepted for older files; the ``net`` list is always built the same way."""
    compile: bool | Compile = False
    """Compile backbone and head with torch.compile, or with the ``mode`` of a block; of a distillation the teachers too."""
    channels_last: bool = True
    """Keep images and convolutions in channels-last memory order, which is faster on most hardware."""
    deterministic: bool = False
    """Use deterministic algorithms only; slower."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Each process holds the whole model (ddp), or a shard of it (fsdp)."""
    static_graph: bool = False
    """Tell ddp that every step uses the same parameters."""
    allow_dead_parameter: bool = False
    """Allow parameters that get no gradient, for which ddp then searches; otherwise they are an error."""
    plugins: list[Name] = []
    """Modules with parts of the user's own, such as ``my_lab.parts``."""
    dist: Dist = Dist()
    """Communication between processes."""

    @field_validator("fp16", mode="before")
    @classmethod
    def _any_truthy(cls, value: object) -> object:
        return value if isinstance(value, dict | Fp16) and value else bool(value)

    @field_validator("task_names", mode="before")
    @classmethod
    def _only_task(cls, value: object) -> object:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @property
    def compile_mode(self) -> CompileMode | None:
        """The mode of torch.compile; None for a net that is not compiled."""
        if isinstance(self.compile, Compile):
            return self.compile.mode
        return "default" if self.compile else None

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """The number format of forward and backward: ``amp``, else ``fp16``; float32 for ``auto``, before it is chosen."""
        if self.amp is not None:
            return "fp32" if self.amp == "auto" else self.amp
        return "fp16" if self.fp16 else "fp32"


class SaverSection(Section):
    """Output folders, and the start of a run: own latest checkpoint, resume_model, pretrain_model, or from scratch."""

    type: Literal["base"] = "base"
    """Kind of saver; ``base`` is the only one."""
    save_dir: Name | None = None
    """Run folder: checkpoints, logs, status. Unset uses runs/ and the name of the configuration file."""
    results_dir: Name | None = None
    """Folder of evaluation reports; unset uses ``results`` in the run folder."""
    auto_resume: Annotated[bool, FreeOnResume(reported=False)] = True
    """Resume from the newest checkpoint in ``save_dir``, if there is one. With false an earlier run there is moved to
    ``earlier/N``, and training starts from the beginning."""
    resume_model: Name | None = None
    """Checkpoint to resume from if ``save_dir`` has none, with the whole training state; with or without ``.pth``."""
    pretrain_model: Name | None = None
    """Weights to start from: a checkpoint of up or UP (its EMA weights, if it has them), a file of timm or torchvision, or
    ``timm:NAME``."""
    skip: list[Name] = []
    """Tensors not to load from ``pretrain_model``: a prefix of the name, or ``r:`` and a regular expression."""
    best_without_optimizer: bool = False
    """Write ``ckpt_best.pth`` without the optimizer state, at a third of the size or less: it can be evaluated, exported and
    fine-tuned, but not resumed from."""
    save_result: bool = False
    """Let ``eval`` also write ``results.txt``, one line per image."""
    memory_friendly: bool = False
    """Let ``eval`` write one line per image to ``results.txt.rank0`` and so on after each batch. It overwrites these files, unless
    ``inference_cfg.test_resume`` of the data set, which implies this setting, continues an interrupted inference."""
    task_type: Name | None = None
    """Accepted for older files; ``runtime.task_names`` names the task."""
    accept_data_change: Annotated[bool, FreeOnResume(reported=False)] = False
    """Resume even though the training data changed since the checkpoint; ``up train --accept-data-change`` sets it."""

    def folder(self, config_file: Path) -> Path:
        """The run folder of the configuration in ``config_file``."""
        return Path(self.save_dir or f"runs/{config_file.stem}")

    @field_validator("resume_model", "pretrain_model", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value


class NetModule(Part):
    """A module of the net: it reads the running record and returns new entries."""

    name: Name
    """Name of the module, the prefix of the names of its tensors."""
    prev: Name | None = None
    """Module whose output planes this one takes; unset takes the module before."""
    freeze_patterns: list[Name] = []
    """Parameters to freeze: a prefix of the name, or ``r:`` and a regular expression; with ``type: self`` of the names in
    the whole net."""

    @model_validator(mode="before")
    @classmethod
    def _net_itself(cls, data: object) -> object:
        """Read ``type: self``, which is the whole net instead of a module, with the argument ``freeze_patterns``."""
        if not isinstance(data, dict) or data.get("type") != "self":
            return data
        kwargs = data.get("kwargs")
        if isinstance(kwargs, dict) and "freeze_patterns" in kwargs:
            rest = {key: value for key, value in kwargs.items() if key != "freeze_patterns"}
            data = {**data, "kwargs": rest, "freeze_patterns": kwargs["freeze_patterns"]}
        return {"name": "self", **data}

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> Record:
        """The name first, as files have it."""
        plain: Record = handler(self)
        return {"name": plain.pop("name"), **plain}


class EmaKwargs(Section):
    """Arguments of the moving average."""

    decay: Fraction = 0.9999
    """Weight of the old average."""
    inner_T: AtLeast1 = 1
    """Steps between two updates of the average."""
    warmup: AtLeast1 = 1
    """``linear``: the decay grows as (1 + t) / (warmup + t) up to ``decay``."""


class EmaSection(Section):
    """Exponential moving average of the weights; evaluation and export use it if it is enabled."""

    enable: Annotated[bool, FixedOnResume()] = False
    """Keep the average."""
    ema_type: Annotated[Literal["linear", "exp"], FixedOnResume()] = "linear"
    """Growth of the decay: min(decay, (1 + t) / (warmup + t)), or decay * (1 - exp(-t / 2000))."""
    kwargs: EmaKwargs = EmaKwargs()
    """Decay and warmup."""


class ToKestrelSection(Section):
    """Package for Kestrel, and the description of the model in it."""

    toks_type: Literal["cls"] = "cls"
    """Kind of package; ``cls`` is the only one."""
    plugin: Name = "classifier"
    """The plug-in of Kestrel that runs the model."""
    model_name: Name = "model"
    """Name of the model, the first part of the package's name."""
    version: Annotated[str, AfterValidator(_version)] = "1.0.0"
    """Version of the model: major.minor.patch."""
    pixel_means: list[float] | None = None
    """Mean of each channel, 0 to 255; unset uses 255 times that of ``normalize``."""
    pixel_stds: list[float] | None = None
    """Standard deviation of each channel, 0 to 255; unset uses 255 times that of ``normalize``."""
    is_rgb: bool | None = None
    """Channels are red, green, blue; unset follows from the images of training."""
    save_all_label: bool = True
    """Report the score of every class."""
    type: str = "UNKNOWN"
    """Kind of objects that are classified."""
    add_softmax: bool = False
    """End the graph with softmax (sigmoid for bce) instead of logits."""
    resize_hw: Annotated[list[AtLeast1], Field(min_length=2, max_length=2)] | str | None = None
    """Height and width of the input; unset uses those of the test transforms."""
    class_label: Record | None = None
    """Heads with their labels: {name: {calculator, start, end, labels}}; unset uses the classes of the data set."""
    support_labels: list[str] | None = None
    """Labels that the package reports; unset means all."""
    save_to: Name | None = None
    """Folder of the package; unset uses ``--save_to`` or the run folder."""


_MORE_THAN_EPOCHS = 10_000

Net = Annotated[list[Annotated[NetModule, PartOf("backbone", ("neck", "head", "post_process"))]], Field(min_length=1)]


class Config(Section):
    """A whole configuration file."""

    gathers: ClassVar[dict[str, str]] = {"teachers": r"teacher\w*"}

    runtime: RuntimeSection = RuntimeSection()
    """Device, precision, seed, task."""
    dataset: DatasetSection = DatasetSection()
    """Training and evaluation data."""
    trainer: TrainerSection = TrainerSection()
    """Length of training, frequency of evaluation and saving, optimizer and learning rate."""
    saver: SaverSection = SaverSection()
    """Output folders, and the start of a run."""
    hooks: list[Annotated[Part, PartOf("hook")]] = []
    """Observers of training, which never change it."""
    trackers: list[Annotated[Part, PartOf("tracker")]] = []
    """Libraries that get the scalars of the run, such as ``wandb``; a name alone is a part without kwargs."""
    net: Annotated[Net, FixedOnResume()]
    """Modules of the model, in order."""
    ema: EmaSection = EmaSection()
    """Exponential moving average of the weights."""
    teachers: Annotated[dict[str, Net], FixedOnResume()] = {}
    """Nets of the teachers, written as ``teacher``, ``teacher0``, …"""
    mimic: Annotated[MimicSection | None, FixedOnResume()] = None
    """Knowledge distillation."""
    finetune: FinetuneSection | None = None
    """Fine-tuning of pretrained weights."""
    to_kestrel: ToKestrelSection = ToKestrelSection()
    """Package for Kestrel."""
    search: Annotated[SearchSection | None, FreeOnResume(reported=False)] = None
    """Search of networks, hyper-parameters and augmentation."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return [{"type": each} if isinstance(each, str) else each for each in value] if isinstance(value, list) else value

    @property
    def schedule_counts_steps(self) -> bool:
        """Whether ``T_max`` of the schedule counts steps: with ``iter_base``, ``max_iter`` itself or too many for epochs."""
        schedule = self.trainer.lr_scheduler
        length = schedule.kwargs.get("T_max") if schedule is not None else None
        if not self.runtime.iter_base or not isinstance(length, int | float):
            return False
        return length >= _MORE_THAN_EPOCHS or length == self.trainer.max_iter


SECTIONS = tuple(name for name in Config.model_fields if name != "teachers")


def is_section(name: str) -> bool:
    """Whether there is a top-level key of this name, ``teacher0`` included."""
    return name in SECTIONS or Config.gathered_in(name) is not None
