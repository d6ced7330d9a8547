"""The section ``search``: stages of trials, each an ordinary training run, and the tables of algorithms and spaces."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from up.config.argument import AtLeast1, Between, Name, Positive
from up.config.contract import Contract, Method
from up.config.section import Section
from up.registry import Registry
from up.types import Record

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
FULL_TRAIN = "full_train"
COSTS = ("params", "macs", "latency_ms", "package_bytes")


def amount(value: float | str) -> float:
    """Return the number that ``5M``, ``1.5G``, ``20MB`` or a plain number means."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kMGT]?)B?", value.strip())
        if found is None:
            raise ValueError("a number with an optional unit, such as 600M or 20MB")
        value = float(found[1]) * _UNITS[found[2]]
    if not value > 0:
        raise ValueError("a number above 0")
    return float(value)


def _url(value: str) -> str:
    if value != "auto" and not re.match(r"(mysql|postgresql)(\+\w+)?://|grpc://[^:/]+:\d+$|[^:]+\.journal$", value):
        raise ValueError("auto, a file FILE.journal, postgresql://…, mysql://… or grpc://HOST:PORT")
    return value


Amount: TypeAlias = Annotated[float | str, AfterValidator(amount)]
Names: TypeAlias = Name | list[Name]


class LatencyLimit(Section):
    """Limit of the time of one forward pass, of weights drawn at random."""

    max: Positive
    """Milliseconds for a batch, the median of several."""
    batch: AtLeast1 = 1
    """Images in the batch."""
    provider: Name = "CPUExecutionProvider"
    """Execution provider of onnxruntime on this machine."""
    command: Name | None = None
    """Shell command that measures elsewhere, such as ``./on_device.sh {onnx}``: it prints the milliseconds as its last word."""


class ConstraintsSection(Section):
    """Limits that a network must meet before it is trained; a point outside costs no trial."""

    params: Amount | None = None
    """Largest number of parameters, such as ``5M``."""
    macs: Amount | None = None
    """Largest number of multiply-adds for one image, such as ``600M``."""
    latency_ms: Positive | LatencyLimit | None = None
    """Longest time for one image with onnxruntime on the CPU, in milliseconds, or a block."""
    package_bytes: Amount | None = None
    """Largest size of the exported graph with its weights, such as ``20MB``."""

    @property
    def latency(self) -> LatencyLimit | None:
        """``latency_ms`` as a block."""
        return LatencyLimit(max=self.latency_ms) if isinstance(self.latency_ms, float | int) else self.latency_ms

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        latency = self.latency
        given = {"params": self.params, "macs": self.macs, "package_bytes": self.package_bytes}
        found = {name: amount(value) for name, value in given.items() if value is not None}
        return {**found, **({"latency_ms": latency.max} if latency is not None else {})}


class StageSection(Section):
    """A stage of trials. Keys beside these are arguments of its algorithm (docs/search.md)."""

    gathers: ClassVar[dict[str, str]] = {"kwargs": r"(?!from$)\w+"}

    algorithm: Name = "tpe"
    """Name of the algorithm; ``python -m up show components algorithm`` lists all."""
    trials: AtLeast1 | None = None
    """Number of complete or pruned trials after which the stage ends; unset leaves the end to the algorithm."""
    objectives: Annotated[dict[Name, Literal["max", "min"]], Field(min_length=1)] = {"top1": "max"}
    """Metrics of the evaluation, or ``params``, ``macs``, ``latency_ms``, ``package_bytes``; the first one chooses
    ``best.yaml``."""
    space: Record = {}
    """Dotted paths with their values (a list, ``{range: [low, high], int: true, step: n}``, ``{log: [low, high]}``,
    ``{switches: N, ones: K}``, each with ``when``), or ``{type, kwargs}`` of a function that returns them."""
    forbid: list[Record] = []
    """Combinations of values that no trial has."""
    enqueue: list[Record] = []
    """Points that are tried first; keys that are left out have the value of the file."""
    from_: Annotated[Names | None, Field(alias="from")] = None
    """Fragments that are merged over the file: ``nas.best``, or YAML files."""
    set: Record = {}
    """Values by dotted path for all trials of the stage."""
    max_epoch: AtLeast1 | None = None
    """Epochs of a full trial; unset uses ``trainer.max_epoch``. The schedule is scaled to it."""
    constraints: ConstraintsSection | None = None
    """Limits of this stage; unset uses those of ``search``."""
    control: int = Field(default=-1, ge=-1)
    """Trials of the control row, random points at the same budget; -1 uses a fifth of ``trials``, 0 has none."""
    kwargs: Record = {}
    """Arguments of the algorithm, written beside the other keys."""


class FullTrainSection(Section):
    """The last stage: train the candidates on all of ``dataset.train``, and choose by ``dataset.test``, which is opened only
    here."""

    candidates: Names | None = None
    """``nas.pareto``, ``nas.best`` or YAML files; unset trains the file itself with the fragments below."""
    top: AtLeast1 = 1
    """Number of candidates to train, the best of their stage first."""
    hparams: Names | None = None
    """Fragments with hyper-parameters, such as ``hpo.best``."""
    augment: Names | None = None
    """Fragments with augmentation, such as ``augment.schedule``."""
    set: Record = {}
    """Values by dotted path for all candidates."""
    select: Name = "top1"
    """Metric of ``dataset.test`` that chooses the winner."""
    seeds: AtLeast1 = 1
    """Runs of each candidate, with consecutive seeds; the mean counts."""
    control: bool = True
    """Train the file itself too, as the control row."""


class StageEntry(Section):
    """Entry of ``stages``: a name and its block."""

    gathers: ClassVar[dict[str, str]] = {"trials": r"[A-Za-z]\w*"}

    full_train: FullTrainSection | None = None
    """The stage that trains the candidates."""
    trials: dict[str, StageSection] = {}
    """A stage of trials: nas, hpo, augment, or any other name."""

    @model_validator(mode="after")
    def _only_one(self) -> StageEntry:
        if len(self.trials) + (self.full_train is not None) != 1:
            raise ValueError("one stage, {NAME: {…}}")
        return self

    @property
    def name(self) -> str:
        """Name of the stage."""
        return next(iter(self.trials), FULL_TRAIN)


class SearchSection(Section):
    """Search of networks, hyper-parameters and augmentation (docs/search.md). ``up train`` ignores it."""

    storage: Annotated[Name, AfterValidator(_url)] = "auto"
    """Storage of the trials: ``auto`` is a file ``study.journal`` in each stage's folder, on a local disk; ``postgresql://…``,
    ``mysql://…`` or ``grpc://HOST:PORT`` for several hosts."""
    workers: Annotated[int, Between(1, 1024)] = 1
    """Trials at once on this host."""
    gpus_per_trial: Annotated[int, Field(ge=0)] = 1
    """GPUs that a trial has for itself, where there are some, with a rank on each; with 0 all trials share them."""
    holdout: Annotated[float, Between(0.0, 0.9)] = 0.1
    """Stratified share of ``dataset.train`` on which trials are evaluated. ``dataset.test`` is opened by ``full_train`` only."""
    constraints: ConstraintsSection = ConstraintsSection()
    """Limits that networks must meet before they are trained."""
    keep_trials: Literal["best", "all", "none"] = "best"
    """Checkpoints that are kept when a stage is finished: those of the best trials, all, or none."""
    stages: Annotated[list[StageEntry], Field(min_length=1)]
    """The stages, in order."""

    @field_validator("stages")
    @classmethod
    def _each_name_once(cls, stages: list[StageEntry]) -> list[StageEntry]:
        names = [each.name for each in stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"stages with different names; {twice} comes twice")
        if FULL_TRAIN in names[:-1]:
            raise ValueError("full_train as the last of the stages")
        return stages


ALGORITHM_CONTRACT = Contract(
    "docs/search.md",
    methods=(
        Method("suggest", "def suggest(self, history)", "return the next point, or None at the end"),
        Method("observe", "def observe(self, trial)", "take note of a trial that ended"),
    ),
)
ALGORITHMS = Registry(
    "algorithm",
    {
        "random": "up.search.algorithms.optuna:RandomSearch",
        "grid": "up.search.algorithms.optuna:GridSearch",
        "tpe": "up.search.algorithms.optuna:Tpe",
        "gp": "up.search.algorithms.optuna:GaussianProcess",
        "evolution": "up.search.algorithms.optuna:Evolution",
        "cma_es": "up.search.algorithms.optuna:CmaEs",
        "asha": "up.search.algorithms.halving:Asha",
        "bohb": "up.search.algorithms.halving:Bohb",
        "boss": "up.search.algorithms.boss:Boss",
        "pbt": "up.search.algorithms.population:Pbt",
        "pba": "up.search.algorithms.pba:Pba",
        "backbone_nas": "up.search.algorithms.backbone_nas:BackboneNas",
        "darts": "up.search.algorithms.supernet:Darts",
        "cars": "up.search.algorithms.supernet:Cars",
    },
    contract=ALGORITHM_CONTRACT,
)
SPACES = Registry("space", {}, contract=Contract("docs/search.md"))
"""Functions that return a space in its YAML form, all of them of plug-ins."""
