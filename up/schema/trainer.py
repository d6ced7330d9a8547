"""The section ``trainer``: length, frequencies, optimizer and learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from up.config.argument import AtLeast0, AtLeast1, FixedOnResume, Fraction, Name, NotNegative, PartOf, Positive
from up.config.section import Part, Section


class ParamRule(Section):
    """Settings for the parameters of one kind of module."""

    type: str | None = None
    """Accepted for older files; the name of the rule determines the parameters."""
    kwargs: dict[str, float] = {}
    """Settings of the optimizer for these parameters, such as ``weight_decay: 0.0`` or ``lr``."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: object) -> object:
        """Read ``bn_w: {weight_decay: 0}`` as ``bn_w: {kwargs: {weight_decay: 0}}``."""
        if isinstance(data, dict) and data and not {"type", "kwargs"} & data.keys():
            return {"kwargs": data}
        return data


class LayerDecay(Section):
    """Smaller learning rates for layers further from the head (BEiT, Bao et al. 2021, appendix)."""

    type: str | None = None
    """Accepted for older files; the network defines its layers."""
    value: Annotated[float, Field(gt=0, le=1)]
    """Factor from one layer to the one before it."""
    base_lr: Positive | None = None
    """Learning rate of the last layer; unset uses the optimizer's."""


class Discriminative(Section):
    """Smaller learning rates for blocks of layers further from the head (ULMFiT, Howard and Ruder 2018, section 3.2)."""

    blocks: AtLeast1 = 3
    """Number of equal blocks of layers."""
    factor: Annotated[float, Field(ge=1)] = 2.6
    """Ratio of the learning rates of a block and the block before it."""


class ParamConfig(Section):
    """Settings of parameters by the class of their module, for biases and weights."""

    bn_b: ParamRule | None = None
    """Biases of batch normalisation, SyncBatchNorm included."""
    bn_w: ParamRule | None = None
    """Weights of batch normalisation, SyncBatchNorm included."""
    ln_b: ParamRule | None = None
    """Biases of LayerNorm, GroupNorm, InstanceNorm and RMSNorm."""
    ln_w: ParamRule | None = None
    """Weights of LayerNorm, GroupNorm, InstanceNorm and RMSNorm."""
    linear_b: ParamRule | None = Field(default=None, validation_alias=AliasChoices("linear_b", "linear"))
    """Biases of linear layers; ``linear`` is another spelling."""
    linear_w: ParamRule | None = None
    """Weights of linear layers."""
    conv_b: ParamRule | None = None
    """Biases of convolutions."""
    conv_w: ParamRule | None = None
    """Weights of convolutions."""
    nodecay: list[Name] = []
    """No weight decay for parameters whose name contains one of these; ``ndim_is1`` means all with one dimension.
    ``{value: [...]}`` is another form."""
    layer_decay: LayerDecay | None = None
    """Layer-wise learning rates."""
    discriminative: Discriminative | None = None
    """Learning rates by blocks of layers."""

    @model_validator(mode="before")
    @classmethod
    def _lift_nodecay(cls, data: object) -> object:
        """Move a ``nodecay`` inside another rule up: it applies to all parameters."""
        if not isinstance(data, dict):
            return data
        if {"linear", "linear_b"} <= data.keys():
            raise ValueError("one of linear and linear_b, which are the same rule")
        nested: list[object] = []
        lifted = {key: rule if key == "nodecay" else _without_nodecay(rule, nested) for key, rule in data.items()}
        names = [*_names_of(data.get("nodecay")), *nested]
        return {**lifted, "nodecay": names} if names or "nodecay" in data else lifted

    @model_validator(mode="after")
    def _one_rule_of_depth(self) -> ParamConfig:
        if self.layer_decay is not None and self.discriminative is not None:
            raise ValueError("one of layer_decay and discriminative: both set the learning rates by depth")
        return self


def _without_nodecay(rule: object, nested: list[object]) -> object:
    if not isinstance(rule, dict):
        return rule
    nested += _names_of(rule.get("nodecay"))
    kept = {key: _without_nodecay(value, nested) if key == "kwargs" else value for key, value in rule.items() if key != "nodecay"}
    return kept or (None if "nodecay" in rule else kept)


def _names_of(written: object) -> list[object]:
    """``{value: [...]}``, a list, or one name."""
    if isinstance(written, dict) and written.keys() <= {"type", "value"}:
        written = written.get("value")
    return [] if written is None else list(written) if isinstance(written, list | tuple) else [written]


class SpecialGroup(Section):
    """Settings for the parameters whose name contains ``key``."""

    key: Name
    """Part of the parameter's name; the first group that matches is used."""
    lr: Positive | None = None
    """Learning rate of the group; unset uses that of ``pconfig``, else the optimizer's."""
    weight_decay: NotNegative | None = None
    """Weight decay of the group; unset uses that of ``pconfig``, else the optimizer's."""

    @property
    def options(self) -> dict[str, float]:
        """The options that are set."""
        return {name: value for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)) if value is not None}


class OptimizerPart(Part):
    """An optimizer: any of torch.optim, any of timm, LAMB, LARS."""

    type: Annotated[Name, FixedOnResume()]
    """Name of the optimizer; ``python -m up show components optimizer`` lists all."""
    pconfig: Annotated[ParamConfig, FixedOnResume()] = ParamConfig()
    """Settings by kind of parameter."""
    special_param_group: Annotated[list[SpecialGroup], FixedOnResume()] = []
    """Settings by name of parameter; they override ``pconfig``."""


class SchedulePart(Part):
    """The learning rate as a function of the step: a schedule after a warmup."""

    warmup_iter: AtLeast0 = 0
    """Steps of warmup; the longest of this, ``warmup_epochs`` and ``warmup_share`` is used."""
    warmup_epochs: NotNegative = 0.0
    """Epochs of warmup; a last fraction of a step is left out."""
    warmup_share: Fraction = 0.0
    """Share of the run that is warmup; the longest of the three is used."""
    warmup_type: Literal["exp", "linear", "cosine"] = "exp"
    """Curve from the first learning rate to the target."""
    warmup_ratio: float = -1.0
    """First learning rate as a share of the target; negative starts from the unscaled ``lr`` of the optimizer."""
    warmup_register_type: Literal["base", "no_scale_lr"] = "base"
    """``base``: ``lr`` is per image, scaled by the global batch size; ``no_scale_lr``: ``lr`` is the target.
    ``lr_register_type`` and ``register_type`` are other spellings."""


class EarlyStoppingSection(Section):
    """End training when the evaluations no longer improve; the run is done, exit code 0."""

    patience: AtLeast1
    """Number of evaluations in a row without an improvement after which training stops. A longer patience continues the run."""
    min_delta: NotNegative = 0.0
    """Smallest improvement that counts; percentage points for accuracies."""
    metric: Name | None = None
    """Name of the metric, such as ``top1``, ``ema_top1`` or ``loss`` (smaller is better for names that end in loss); unset is the
    one that chooses the best checkpoint."""


class TrainerSection(Section):
    """Length of training, frequency of evaluation and saving, optimizer and learning rate."""

    max_epoch: AtLeast1 | None = None
    """Epochs to train."""
    max_iter: AtLeast1 | None = None
    """Steps to train; overrides ``max_epoch``. Alone it implies ``runtime.iter_base``."""
    stop_epoch: AtLeast1 | None = None
    """Stop after this epoch as a signal does, evaluated and saved: exit code 75, and the same command with a larger value
    continues. The schedule stays that of ``max_epoch``."""
    test_freq: AtLeast1 = 1
    """Epochs between evaluations; steps with ``runtime.iter_base``. The end is always evaluated."""
    test_start: Annotated[int, Field(ge=-1)] = 0
    """No evaluation before this epoch (or step)."""
    eval_interval: AtLeast1 | None = None
    """Steps between evaluations; overrides ``test_freq``."""
    save_freq: AtLeast1 = 1
    """Epochs between checkpoints that are kept; steps with ``runtime.iter_base``. The end is always saved."""
    save_interval: AtLeast1 | None = None
    """Steps between checkpoints; overrides ``save_freq``. ``keep_last`` deletes the older ones."""
    save_start: Annotated[int, Field(ge=-1)] = 0
    """No checkpoint that is kept before this epoch (or step)."""
    only_save_latest: bool = False
    """Keep the newest checkpoint and one predecessor, unless ``keep_last`` is given."""
    save_latest_freq: AtLeast1 | None = None
    """Epochs (or steps) between writes of ``ckpt_latest.pth``; unset writes it with the others.
    ``saver.save_latest_freq`` is another place for it."""
    save_cur_freq: AtLeast1 | None = None
    """Epochs (or steps) between further checkpoints, beside those of ``save_freq``, from ``save_cur_start`` on; unset with a
    ``save_cur_start`` means 1."""
    save_cur_start: Annotated[int, Field(ge=-1)] | None = None
    """No checkpoint of ``save_cur_freq`` before this epoch (or step)."""
    keep_last: Literal["all"] | Annotated[int, Field(ge=2)] = 2
    """Number of the newest checkpoints to keep, or ``all`` of ``save_freq``; the best one is always kept. Unset means ``all`` if
    ``save_freq`` is written and ``only_save_latest`` is not true."""
    keep_every: AtLeast1 | None = None
    """Epochs (or steps) between further checkpoints that are never deleted."""
    keep_best: AtLeast1 | None = None
    """Number of checkpoints to keep that have the best main metric, such as those of a soup; each is saved when it is evaluated.
    ``saver.keep_best`` is another place for it."""
    best_within: Annotated[float, Field(ge=0)] = 0.0
    """Standard errors below the highest main metric within which a later checkpoint is the best one: with 1 a few lucky images do
    not decide, and with few images the last epochs win, whose learning rate is the smallest. 0 takes the highest."""
    early_stopping: EarlyStoppingSection | None = None
    """Stop when the evaluations no longer improve."""
    log_interval: AtLeast1 = 20
    """Steps between log lines; ``--display`` sets it."""
    is_eval: bool = True
    """Evaluate during training."""
    accumulate: AtLeast1 = 1
    """Micro-batches per step, whose gradients are accumulated."""
    out_of_memory: Literal["split", "stop"] = "split"
    """Where memory runs out: ``split`` repeats the step in smaller micro-batches, and keeps them for the rest of the run; the
    gradients are the same but for batch normalisation and dropout. ``stop`` ends the run with exit code 2."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradients; larger ones are scaled down."""
    optimizer: Annotated[OptimizerPart, PartOf("optimizer")] | None = None
    """The optimizer and its settings by parameter."""
    lr_scheduler: Annotated[SchedulePart, PartOf("lr_scheduler")] | None = None
    """The schedule of the learning rate; unset keeps it constant."""

    @model_validator(mode="before")
    @classmethod
    def _keep_what_save_freq_asks_for(cls, data: object) -> object:
        """Keep all checkpoints of a written ``save_freq``, as UP's files expect; those of every epoch would fill the disk."""
        asks = isinstance(data, dict) and data.get("save_freq") is not None and not data.get("only_save_latest")
        return {**data, "keep_last": "all"} if asks and isinstance(data, dict) and data.get("keep_last") is None else data
