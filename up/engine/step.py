"""The data of a step, and the runner that turns a batch into a loss: what a task or a distillation replaces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from up.config.argument import FromProgram
from up.data.records import Batch
from up.data.sampler import Cut
from up.distributed.group import rank
from up.engine.hooks import Hook
from up.registry import Registry
from up.seed import generator, key, seed_all
from up.types import Kwargs, StateDict

RUNNERS = Registry("runner", {"base": "up.engine.step:Runner"})

RunnerT = TypeVar("RunnerT", bound="Runner")
_MIXING, _DROPOUT, _UPDATE = 1, 2, 3  # purposes that keep draws of the same step apart


@dataclass(frozen=True)
class StepData:
    """This rank's part of the data of a step: its micro-batches, or the failure to read them."""

    batches: Sequence[Batch]
    wait_s: float  # seconds that the loop waited for it
    cut: Cut = Cut([], 0)  # share of each micro-batch, so that however images are cut the mean over ranks is that over images
    failure: Exception | None = None

    @property
    def last(self) -> int:
        """Index of the last micro-batch."""
        return len(self.batches) - 1


class StepLoader(Protocol):
    """The data of steps: the step and this rank's micro-batches, and their weights."""

    def cut(self, step: int) -> Cut:
        """Weigh each micro-batch of a step, and count the images of the step on all ranks."""

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]: ...


def data_of_steps(loader: StepLoader) -> Iterator[StepData]:
    """Yield the data of each step of a loader; a failure to read is yielded as the last one, for all ranks to vote on."""
    fetched, begun = iter(loader), time.perf_counter()
    try:
        for step, batches in fetched:
            yield StepData(batches, time.perf_counter() - begun, loader.cut(step))
            begun = time.perf_counter()
    except Exception as error:
        yield StepData([], time.perf_counter() - begun, failure=error)


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
    """Scalars by their names in the log. A micro-batch may lack some of them; all ranks give the same names in a step."""
    outputs: Kwargs = field(default_factory=dict)
    weight: Tensor | float | None = None
    """Number of items that the loss and the scalars are means over: labelled pixels, boxes; may be 0. None: images.

    Every micro-batch of every rank has a weight, or none has. fp16 needs it of the order of the number of images: divide by a
    constant that is the same on all ranks.
    """
    terms: Mapping[str, Mean] = field(default_factory=dict)
    """The parts of ``loss`` that are means over other items than ``weight``, by their names in the log.

    Exact for any number of ranks; where gradients accumulate, the weights of later micro-batches are extrapolated.
    """

    def means(self) -> dict[str, Mean]:
        """Return scalars and terms with their weights, detached."""
        scalars = {name: value if isinstance(value, Mean) else Mean(value, self.weight) for name, value in self.scalars.items()}
        return {name: Mean(mean.value.detach(), mean.weight) for name, mean in {**scalars, **self.terms}.items()}

    def shown(self) -> dict[str, Tensor]:
        """Return loss, scalars and terms, detached."""
        return {"loss": self.loss.detach(), **{name: mean.value for name, mean in self.means().items()}}


LossOf = Callable[[nn.Module, Batch], StepOutput]
BatchStage = Callable[[Batch], Batch]
Mixing = Callable[[Batch, torch.Generator], Batch]


class Runner:
    """Prepares batches on the device and turns them into losses.

    ``net`` is called (wrapped for many ranks if there are), ``model`` is the bare network whose weights are saved.
    ``stage`` moves a batch to the device and finishes its images there; ``mix`` blends training batches.
    ``trains_all_weights`` is False if a step may leave out weights, for which ddp then searches.
    """

    trains_all_weights: ClassVar[bool] = True

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
        """The network without its DDP wrapper."""
        return self.net.module if isinstance(self.net, DistributedDataParallel) else self.net

    def over(self: RunnerT, net: nn.Module) -> RunnerT:
        """Return a copy that calls ``net``, the wrapped network."""
        wrapped = copy(self)
        wrapped.net = net
        return wrapped

    def prepare(self, batch: Batch, step: int, micro: int) -> Batch:
        """Move a training batch to the device, finish and mix it, and seed dropout, keyed by (seed, step, micro-batch, rank)."""
        batch, own = self.stage(batch), rank()
        if self.mix is not None:
            batch = self.mix(batch, generator(self.seed, step, micro, own, _MIXING))
        seed_all(key(self.seed, step, micro, own, _DROPOUT))
        return batch

    def reseed(self, step: int, micro: int, part: int) -> None:
        """Seed dropout for a further part of a micro-batch that memory does not hold whole."""
        seed_all(key(self.seed, step, micro, rank(), _DROPOUT, part))

    def seed_update(self, optimizer: Optimizer, step: int) -> None:
        """Seed the random numbers of an optimizer, keyed by (seed, step): equal on all ranks, so that their weights stay equal.

        Optimizers of torch draw none, and skip the 7 us that seeding takes.
        """
        if not type(optimizer).__module__.startswith("torch.optim."):
            seed_all(key(self.seed, step, _UPDATE))

    @property
    def hooks(self) -> Sequence[Hook]:
        """Hooks of the runner's own, on the main rank; none here."""
        return ()

    def before_step(self, data: StepData, step: int) -> None:
        """Change what the runner trains beside the weights, such as an architecture; does nothing here."""

    def after_step(self, step: int) -> None:
        """Do the same after ``step`` steps, before an evaluation; does nothing here."""

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Compute the loss of a prepared batch at ``step``."""
        return self.loss_of(self.net, batch)

    @property
    def loss_names(self) -> Sequence[str]:
        """Names of the scalars whose sum is the loss; empty for a single loss."""
        return ()

    def add_parameters_to(self, optimizer: Optimizer) -> None:
        """Add the parameters that the runner trains beside the model, such as adapters, to the optimizer; none here."""

    def gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between ranks in the backward pass of the last micro-batch only."""
        if isinstance(self.net, FSDPModule):
            self.net.set_requires_gradient_sync(last)
        elif isinstance(self.net, DistributedDataParallel) and not last:
            return self.net.no_sync()
        return nullcontext()

    def state_dict(self) -> StateDict:
        """Return the state of the parameters beside the model; empty here."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
