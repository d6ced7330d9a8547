"""How a batch becomes a loss: the one thing about training that a task or a distillation may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from up.config.argument import FromProgram
from up.data.records import Batch
from up.distributed.group import rank
from up.registry import Registry
from up.seed import generator, key, seed_all
from up.types import Kwargs, StateDict

RUNNERS = Registry("runner", {"base": "up.engine.step:Runner"})

RunnerT = TypeVar("RunnerT", bound="Runner")
_MIXING, _DROPOUT = 1, 2  # purposes that keep two draws of the same step apart


@dataclass(frozen=True)
class Mean:
    """A scalar with a weight of its own, as ``StepOutput.weight``."""

    value: Tensor
    weight: Tensor | float | None = None


@dataclass(frozen=True)
class StepOutput:
    """Output of one micro-batch: the loss, and scalars to show (tensors, no host sync)."""

    loss: Tensor
    scalars: Mapping[str, Tensor | Mean] = field(default_factory=dict)
    outputs: Kwargs = field(default_factory=dict)
    weight: Tensor | float | None = None
    """How much the loss and the scalars are the mean of: labelled pixels, boxes; 0 where there are none. None: of the images.

    Every micro-batch of every rank has one, or none has. fp16 wants it of the order of the number of images: divide by a constant
    that all ranks know.
    """
    terms: Mapping[str, Mean] = field(default_factory=dict)
    """The parts of ``loss``, by the names that logs give them, which are means over something else than ``weight`` says.

    Exact for any number of ranks; where gradients accumulate, the weights of later micro-batches are extrapolated.
    """

    def means(self) -> dict[str, Mean]:
        """Scalars and terms with their weights, cut off from the graph."""
        scalars = {name: value if isinstance(value, Mean) else Mean(value, self.weight) for name, value in self.scalars.items()}
        return {name: Mean(mean.value.detach(), mean.weight) for name, mean in {**scalars, **self.terms}.items()}

    def shown(self) -> dict[str, Tensor]:
        """Loss, scalars and terms, cut off from the graph."""
        return {"loss": self.loss.detach(), **{name: mean.value for name, mean in self.means().items()}}


LossOf = Callable[[nn.Module, Batch], StepOutput]
BatchStage = Callable[[Batch], Batch]
Mixing = Callable[[Batch, torch.Generator], Batch]


class Runner:
    """Prepares batches on the device and turns them into losses.

    ``net`` is what is called (perhaps wrapped for many ranks), ``model`` the bare network whose weights are saved.
    ``stage`` brings a batch to the device and finishes its images there; ``mix`` blends training batches.
    """

    def __init__(
        self,
        net: Annotated[nn.Module, FromProgram()],
        *,
        loss_of: Annotated[LossOf, FromProgram()],
        stage: Annotated[BatchStage, FromProgram()],
        mix: Annotated[Mixing | None, FromProgram()],
        seed: Annotated[int, FromProgram()],
    ) -> None:
        self.net = net
        self.loss_of = loss_of
        self.stage = stage
        self.mix = mix
        self.seed = seed

    @property
    def model(self) -> nn.Module:
        """The network without the wrapper of a process group."""
        return self.net.module if isinstance(self.net, DistributedDataParallel) else self.net

    def over(self: RunnerT, net: nn.Module) -> RunnerT:
        """The same runner that calls ``net``, the wrapper of a process group around its own."""
        wrapped = copy(self)
        wrapped.net = net
        return wrapped

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """A training batch on the device, finished and mixed; mixing and dropout are keyed by (seed, step, micro-batch, rank)."""
        batch = self.stage(batch)
        if self.mix is not None:
            batch = self.mix(batch, generator(self.seed, step, micro, rank(), _MIXING))
        seed_all(key(self.seed, step, micro, rank(), _DROPOUT))
        return batch

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """The loss of a prepared batch at update ``step``."""
        return self.loss_of(self.net, batch)

    @property
    def loss_names(self) -> Sequence[str]:
        """The scalars of a step that the loss is the sum of; none where it is one loss."""
        return ()

    def add_parameters_to(self, optimizer: Optimizer) -> None:
        """Let the optimizer train what the runner trains beside the model: nothing here."""

    def gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients in the backward pass of the last micro-batch only."""
        if isinstance(self.net, FSDPModule):
            self.net.set_requires_gradient_sync(last)
        elif isinstance(self.net, DistributedDataParallel) and not last:
            return self.net.no_sync()
        return nullcontext()

    def state_dict(self) -> StateDict:
        """State of what trains beside the model: none here."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
