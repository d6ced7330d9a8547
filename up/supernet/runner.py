"""Runners that train a supernet: the frame, and DARTS (Liu et al. 2019, arXiv 1806.09055)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from up.config.argument import AtLeast0, Fraction, FromProgram, NotNegative, Positive
from up.data.collate import rows_of
from up.data.records import Batch, image_count
from up.distributed.group import rank, sum_over_ranks
from up.engine.evaluate import Evaluation
from up.engine.hooks import Hook
from up.engine.step import Runner, StepData, StepOutput
from up.errors import NumericalError
from up.models.adapter import Count
from up.models.cells import Layers
from up.models.supernet import CellSupernet
from up.schema.sections import CompileMode
from up.seed import key, seed_all
from up.supernet.results import FoundNetwork, GenotypeFiles
from up.types import Argument, Record, StateDict

_ARCHITECTURE = 13  # purpose of a seed


@dataclass(frozen=True)
class ArchitectureSearch:
    """A run's data for its search: held-out images with the transforms of evaluation, and the length of the run."""

    held_out: Evaluation
    steps_per_epoch: int
    total_steps: int
    net: Sequence[Record] = field(default_factory=list)  # the list ``net`` of the file
    image: tuple[int, int, int] = (3, 32, 32)  # channels, height and width

    def runner_arguments(
        self, net: nn.Module, device: torch.device, *, channels_last: bool, compile_mode: CompileMode | None
    ) -> dict[str, object]:
        """Return the arguments of a runner that searches."""
        return {"search": self}


class SupernetRunner(Runner, ABC):
    """Train the weights of a supernet on one part of the images, and choose its architecture on the other, the held-out part."""

    trains_all_weights = False
    reads_pairs: ClassVar[bool] = False
    """Whether a batch has as many held-out images after those that train the weights."""

    def __init__(
        self,
        net: Annotated[nn.Module, FromProgram()],
        *,
        search: Annotated[ArchitectureSearch | None, FromProgram()] = None,
        holdout: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        layers: Layers | None = None,
        init_channels: Count | None = None,
        auxiliary_weight: NotNegative = 0.0,
        **kwargs: Argument,
    ) -> None:
        super().__init__(net, **kwargs)
        del holdout  # the data were split by it
        self.plan = search
        self.supernet = next(module for module in self.model.modules() if isinstance(module, CellSupernet))
        self._written: dict[str, float] = {
            "layers": layers or self.supernet.layers,
            "init_channels": init_channels or self.supernet.init_channels,
            **({"auxiliary_weight": auxiliary_weight} if auxiliary_weight else {}),
        }

    @property
    def hooks(self) -> Sequence[Hook]:
        """The hook that writes the networks found so far."""
        return [] if self.plan is None else [GenotypeFiles(self.plan.net, self._written, self.found)]

    @abstractmethod
    def found(self) -> Sequence[FoundNetwork]:
        """Return the networks found so far, the best first."""


class DartsRunner(SupernetRunner):
    """DARTS of first order: before each step of the weights, the architecture parameters step on as many held-out images.

    - ``holdout``: share of ``dataset.train`` that the architecture is chosen on; the rest trains the weights.
    - ``warmup``: epochs before the architecture moves.
    - ``arch_lr``, ``arch_betas``, ``arch_weight_decay``: Adam's, of the architecture parameters.
    - ``layers``, ``init_channels``: of the network in ``fragments/best.yaml`` of the run folder; unset takes those of the supernet.
    - ``auxiliary_weight``: of that network, as in ``cell_network``.

    ``trainer`` has the optimizer of the weights: the paper has SGD, 0.025 to 0.001 by cosine, momentum 0.9, weight decay 3e-4, and
    gradients clipped at 5.
    """

    reads_pairs = True

    def __init__(
        self,
        net: Annotated[nn.Module, FromProgram()],
        *,
        warmup: AtLeast0 = 0,
        arch_lr: Positive = 3e-4,
        arch_betas: tuple[Fraction, Fraction] = (0.5, 0.999),
        arch_weight_decay: NotNegative = 1e-3,
        **kwargs: Argument,
    ) -> None:
        super().__init__(net, **kwargs)
        self._first_epoch = warmup
        self.optimizer = torch.optim.Adam(self.supernet.architecture, lr=arch_lr, betas=arch_betas, weight_decay=arch_weight_decay)
        self._loss: Tensor | None = None

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """Prepare the images that train the weights."""
        return super().prepare(rows_of(batch, slice(image_count(batch) // 2)), step, micro)

    def before_step(self, data: StepData, step: int) -> None:
        """Move the architecture by the gradient of the loss of the held-out images of all ranks; the weights do not change."""
        if self.plan is None or step < self._first_epoch * self.plan.steps_per_epoch:
            return
        parameters = self.supernet.architecture
        total = sum_over_ranks(self._gradient(data, step))
        gradient, loss, weight = total[:-2], total[-2], total[-1]
        if not bool(torch.isfinite(gradient).all()):
            raise NumericalError("the gradient of the architecture is not finite; the architecture did not move")
        pieces = torch.split(gradient / weight, [each.numel() for each in parameters])
        for each, piece in zip(parameters, pieces, strict=True):
            each.grad = piece.view_as(each)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._loss = loss / weight

    def _gradient(self, data: StepData, step: int) -> Tensor:
        """Return this rank's sums over its held-out images: the gradient, the loss and the weights of the images, joined."""
        assert self.plan is not None
        parameters = self.supernet.architecture
        sums: list[Tensor] = []
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            for micro, (batch, share) in enumerate(zip(data.batches, data.cut.shares, strict=True)):
                held = self.stage(rows_of(batch, slice(image_count(batch) // 2, None)))
                seed_all(key(self.seed, step, micro, rank(), _ARCHITECTURE))
                with self.plan.held_out.precision.autocast():
                    output = self.loss_of(self.model, held)
                loss = output.loss.float()
                images = share.images if output.weight is None else torch.as_tensor(output.weight).to(loss) * share.row
                weight = loss.new_tensor(1.0) * images
                gradients = torch.autograd.grad(loss * weight, parameters)
                rest = (loss.detach() * weight).reshape(1), weight.detach().reshape(1)
                sums.append(torch.cat([*(each.flatten() for each in gradients), *rest]))
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
        return torch.stack(sums).sum(dim=0)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Compute the loss of the weights; ``architecture_loss`` is that of the last step of the architecture."""
        output = super().training_step(batch, step)
        shown = {} if self._loss is None else {"architecture_loss": self._loss}
        return StepOutput(output.loss, {**output.scalars, **shown}, output.outputs, output.weight, output.terms)

    def found(self) -> Sequence[FoundNetwork]:
        """Return the network of the strongest operations."""
        return [FoundNetwork("best", self.supernet.genotype())]

    def state_dict(self) -> StateDict:
        """Return the state of the architecture's optimizer; its parameters are buffers of the net."""
        return {"architecture": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, StateDict]) -> None:
        """Continue the architecture's optimizer."""
        self.optimizer.load_state_dict(state["architecture"])
