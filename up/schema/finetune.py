"""The section ``finetune``: how pretrained weights are trained further, and what is made of the checkpoints afterwards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from up.config.argument import AtLeast1, FixedOnResume, Fraction, FreeOnResume, Name, NotNegative, Positive
from up.config.section import Section
from up.types import Record

AtLeast2 = Annotated[int, Field(ge=2)]


class UnfreezeSection(Section):
    """Gradual unfreezing from the head down (ULMFiT, Howard and Ruder 2018, section 3.3)."""

    blocks: AtLeast1 = 3
    """Epochs until everything trains: epoch e, from 1, trains the top ⌊depth · e / blocks⌋ of the modules with parameters, in the
    order of ``named_parameters``, and at least one. The others are in evaluation mode."""


class L2SPSection(Section):
    """Penalty weight · ‖w − w₀‖² towards the starting weights w₀ of all but the head (Li et al. 2018, eq. 2 with α = 2 weight)."""

    weight: NotNegative = 1e-3
    """λ, the factor of the squared distance; the gradient is 2 λ (w − w₀). The paper's factor is α / 2."""


class LoraSection(Section):
    """Low-rank adapters on linear layers, the rest of the backbone frozen (Hu et al. 2022); merged at export."""

    rank: AtLeast1 = 64
    """Rank of the adapters."""
    alpha: Positive | None = None
    """The product of the two factors is scaled by alpha / rank; unset uses the rank."""
    targets: list[Name] | None = None
    """Layers to adapt, convolutions included: prefixes of their names in the backbone, up to a dot, or ``r:`` and a regular
    expression, such as ``r:qkv``; unset adapts all its linear layers."""


class ProbeSection(Section):
    """Linear probe before full fine-tuning (LP-FT, Kumar et al. 2022): the backbone is frozen for the first epochs."""

    epochs: AtLeast1
    """Epochs in which only the head trains, of ``trainer.max_epoch``."""
    lr: Positive | None = None
    """Learning rate of these epochs, constant; unset uses the optimizer's. The schedule of ``trainer`` begins after them."""


class SoupSection(Section):
    """Greedy soup of the best checkpoints (Wortsman et al. 2022, model soups)."""

    top: AtLeast2 = 3
    """Number of the best checkpoints to try, best first: one joins the mean if the mean is no worse on ``dataset.test``."""


class WiseFtSection(Section):
    """Weights between the start and the end of training (WiSE-FT, Wortsman et al. 2021), measured on ``dataset.test``.

    The start is the end of ``finetune.probe`` if there is one, as the paper starts from a classifier that predicts (zero-shot);
    else the weights that training started from.
    """

    alpha: Fraction | Literal["auto"] = "auto"
    """Share of the end: start · (1 − alpha) + end · alpha; ``auto`` takes the best of 0, 0.1, … 1."""


class AverageSection(Section):
    """Mean of the weights of the last checkpoints."""

    last: AtLeast2
    """Number of checkpoints; as many are kept."""


class SwaSection(Section):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights after each of the last epochs."""

    epochs: AtLeast2
    """Number of epochs at the end whose weights are averaged; their checkpoints are kept."""
    lr: Positive | None = None
    """Constant learning rate of these epochs; unset keeps the schedule of ``trainer``."""


StrategyName = Literal["default", "adam", "adamw", "l2sp", "ulmfit", "linear_probe", "lp_ft", "lora", "step150"]

FeatureMode = Literal["every_step", "auto", "fixed_view"]


class FinetuneSection(Section):
    """Fine-tuning of ``saver.pretrain_model``: a strategy, the parts that it consists of, and averages after training."""

    strategy: Annotated[StrategyName | None, FixedOnResume()] = None
    """Settings that are merged under this file, which always wins: optimizer, schedule and the parts below (docs/finetune.md)."""
    kwargs: Annotated[Record | None, FixedOnResume()] = None
    """Arguments of the strategy, such as ``lr``."""
    freeze: Annotated[Literal["backbone"] | list[Name] | None, FixedOnResume()] = None
    """Parameters that never train: ``backbone`` for all modules before the head, or patterns as in ``freeze_patterns``. Modules
    without any other parameter stay in evaluation mode."""
    unfreeze: Annotated[UnfreezeSection | None, FixedOnResume()] = None
    """Gradual unfreezing."""
    l2sp: Annotated[L2SPSection | None, FixedOnResume()] = None
    """Penalty on the distance to the starting weights."""
    lora: Annotated[LoraSection | None, FixedOnResume()] = None
    """Low-rank adapters."""
    probe: Annotated[ProbeSection | None, FixedOnResume()] = None
    """Linear probe first."""
    features: Annotated[FeatureMode, FixedOnResume()] = "every_step"
    """Output of frozen modules before the head: ``every_step`` computes it in each step. ``auto`` computes it once for each image
    and its mirror image, where no other training transform is random. ``fixed_view`` does so with the transforms of
    ``dataset.test``, and mirrors where ``dataset.train`` does (docs/finetune.md)."""
    soup: Annotated[SoupSection | None, FreeOnResume()] = None
    """Greedy soup after training, as ``ckpt_soup.pth``."""
    wise_ft: Annotated[WiseFtSection | None, FreeOnResume()] = None
    """Weights between start and end after training, as ``ckpt_wise.pth``."""
    average: Annotated[AverageSection | None, FreeOnResume()] = None
    """Mean of the last checkpoints after training, as ``ckpt_average.pth``."""
    swa: Annotated[SwaSection | None, FixedOnResume()] = None
    """Stochastic weight averaging, as ``ckpt_swa.pth``."""

    @property
    def averages(self) -> bool:
        """Whether something is made of the checkpoints after training."""
        return any(each is not None for each in (self.soup, self.wise_ft, self.average, self.swa))
