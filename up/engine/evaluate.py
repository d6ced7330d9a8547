"""Evaluation: each image once, on any number of ranks, with the raw weights and with their moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from up.config.contract import Contract, Method
from up.data.bad_images import BadImages
from up.data.collate import rows_of
from up.data.records import Batch, image_count
from up.distributed.failures import Vote, agree_on, on_all_ranks, raise_on_all_ranks
from up.distributed.group import gather_objects
from up.engine.ema import Ema, NoEma
from up.engine.memory import free_memory
from up.engine.precision import Precision
from up.engine.shards import is_shared
from up.engine.step import BatchStage
from up.errors import UserError, out_of_memory
from up.intervals import Interval
from up.text import count
from up.tracking.log import LOGGER
from up.types import Kwargs

T = TypeVar("T")


class Evaluator(Protocol):
    """Collects the outputs of a data set and computes metrics; a task supplies it."""

    @property
    def main_metric(self) -> str:
        """Name of the metric that chooses the best checkpoint, of which more is better, also where it ends in ``loss``."""

    def reset(self) -> None:
        """Forget everything collected."""

    def update(self, outputs: Kwargs, batch: Kwargs) -> None:
        """Collect one batch."""

    def state(self) -> object:
        """Return everything collected on this rank, as plain arrays and lists."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replace what was collected by the union of all ranks' states, each image once."""

    def compute(self) -> dict[str, float]:
        """Return the metrics by name."""


EVALUATOR_CONTRACT = Contract(
    "docs/add_a_part.md",
    methods=(
        Method("reset", "def reset(self) -> None", "forget everything collected"),
        Method("update", "def update(self, outputs, batch) -> None", "collect one batch"),
        Method("state", "def state(self) -> object", "return everything collected on this rank, as plain arrays and lists"),
        Method("merge", "def merge(self, states) -> None", "replace what was collected by the union of all ranks' states"),
        Method("compute", "def compute(self) -> dict[str, float]", "return the metrics by name"),
    ),
)


class EvaluationInterrupted(Exception):
    """Raised when a signal comes during an evaluation."""


class Evaluated(NamedTuple):
    """Result of an evaluation."""

    metrics: dict[str, float]
    """By name; those of the averaged weights are prefixed ``ema_``."""
    served: Evaluator
    """The evaluator of the weights that would be exported: the averaged ones where there are any."""
    intervals: Mapping[str, Interval] = {}
    """95 % confidence intervals of the metrics that have one."""


@dataclass
class Fitting:
    """The most images of an evaluation's forward pass that fit into the memory of this rank, None as long as all do."""

    images: int | None = None

    def cut(self, batch: Batch) -> list[Batch]:
        """Cut a batch into parts that fit."""
        if self.images is None:
            return [batch]
        return [rows_of(batch, slice(at, at + self.images)) for at in range(0, image_count(batch), self.images)]

    def halve(self, images: int, reason: str, *, shared: bool) -> None:
        """Allow half of ``images``. Raises ``UserError`` for one image, and where the ranks gather weights in a forward pass."""
        if images < 2 or shared:
            what = f"out of memory in the evaluation ({reason}) with {count(images, 'image')} at a time"
            smaller = "make the images smaller, or set runtime.amp: bf16"
            raise UserError(what, fix=f"Lower batch_size of dataset.test, {smaller}." if images > 1 else f"{smaller.capitalize()}.")
        self.images = images // 2
        LOGGER.warning(
            "out of memory in the evaluation with %d images at a time: it continues with %d; the metrics are the same",
            images,
            self.images,
        )
        free_memory()


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a run: its batches, and a factory of evaluators, one for each set of weights."""

    batches: Iterable[Batch]
    stage: BatchStage
    make_evaluator: Callable[[], Evaluator]
    precision: Precision
    on_outputs: Callable[[Kwargs, Batch], None] | None = None  # is called with the outputs of the weights to export
    padding: Callable[[], Batch] | None = None
    """With fsdp, where ranks gather weights in each forward pass: makes the batch, not counted, of a rank without images left."""
    bad_images: BadImages | None = None  # those left out, of all ranks
    intervals_of: Callable[[Evaluator], Mapping[str, Interval]] = lambda evaluator: {}
    fits: Fitting = field(default_factory=Fitting)

    def __call__(self, model: nn.Module, ema: Ema | NoEma, proposal: Callable[[], Vote] = lambda: Vote.GO) -> Evaluated:
        """Evaluate ``model``, and its average in the same pass over the images.

        Before each batch the ranks vote, each with its ``proposal``. Raises, on every rank, ``EvaluationInterrupted`` when a rank
        proposes to stop, and the failure of a rank in its images.
        """
        prefixes = [""] if isinstance(ema, NoEma) else ["", "ema_"]  # of metrics
        evaluators = {prefix: self.make_evaluator() for prefix in prefixes}
        # inference mode is faster, but weights that are gathered in it could not be trained afterwards
        with torch.no_grad() if is_shared(model) else torch.inference_mode(), evaluation_mode(model):
            self._pass(model, ema, evaluators, proposal)
        self._count_bad_images()
        metrics: dict[str, float] = {}
        intervals: dict[str, Interval] = {}
        for prefix, evaluator in reversed(evaluators.items()):  # the weights to export come first
            evaluator.merge(gather_objects(evaluator.state()))
            metrics.update({prefix + name: value for name, value in evaluator.compute().items()})
            intervals.update({prefix + name: interval for name, interval in self.intervals_of(evaluator).items()})
        return Evaluated(metrics, evaluators[prefixes[-1]], intervals)

    def _pass(self, model: nn.Module, ema: Ema | NoEma, evaluators: dict[str, Evaluator], proposal: Callable[[], Vote]) -> None:
        verdict, failure = take_turns(self.batches, lambda batch: self._forward(model, ema, evaluators, batch), proposal)
        if verdict is Vote.ERROR:
            raise_on_all_ranks(failure)
        if verdict is not Vote.GO:
            raise EvaluationInterrupted

    def _forward(self, model: nn.Module, ema: Ema | NoEma, evaluators: dict[str, Evaluator], batch: Batch | None) -> None:
        """Pass a batch through the model with each set of weights; ``padding`` where there is none, so that others can gather."""
        shown = batch if batch is not None or self.padding is None else self.padding()
        if shown is None:
            return
        on_device = self.stage(shown)
        for prefix, evaluator in evaluators.items():
            weights: AbstractContextManager[object] = ema.applied_to(model) if prefix else nullcontext()
            is_served = evaluator is [*evaluators.values()][-1]
            with weights:
                for part, outputs in self._in_parts(model, on_device):
                    if batch is not None:
                        evaluator.update(outputs, part)
                    if batch is not None and is_served and self.on_outputs is not None:
                        self.on_outputs(outputs, part)

    def _in_parts(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Batch, Kwargs]]:
        """Pass a batch through the model; halve it when memory runs out. Each image is computed alone."""
        waiting = self.fits.cut(batch)
        while waiting:
            try:
                with self.precision.autocast():
                    outputs = model(waiting[0])
            except Exception as error:
                reason = out_of_memory(error)
                if reason is None:
                    raise
            else:
                yield waiting.pop(0), outputs
                continue
            # after the block, where the frames of the error no longer hold tensors
            self.fits.halve(image_count(waiting[0]), reason, shared=is_shared(model))
            waiting = [smaller for part in waiting for smaller in self.fits.cut(part)]

    def _count_bad_images(self) -> None:
        """Count the bad images of all ranks. Raises ``UserError`` on every rank if they exceed ``max_bad``."""
        if self.bad_images is not None:
            found = gather_objects(self.bad_images.state_dict()["seen"])
            with on_all_ranks():
                self.bad_images.add({"bad": [bad for seen in found for bad in seen]})

    def first_batch(self) -> Batch:
        """Return this rank's first batch, prepared: the images that figures show."""
        return self.stage(next(iter(self.batches)))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run the block with dropout off and BatchNorm on its running statistics."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def take_turns(
    batches: Iterable[T], forward: Callable[[T | None], object], proposal: Callable[[], Vote]
) -> tuple[Vote, Exception | None]:
    """Call ``forward`` with each batch, in rounds: before each the ranks vote; one that has no batch left takes part with None.

    Returns the verdict that ended it, GO after the last batch of all ranks, and the failure of this rank.
    """
    fetched = iter(batches)
    failure: Exception | None = None
    while True:
        batch = None
        try:
            batch = next(fetched, None) if failure is None else None
        except Exception as error:
            failure = error
        verdict, any_is_left = agree_on(Vote.ERROR if failure else proposal(), batch is not None)
        if verdict is not Vote.GO or not any_is_left:
            return verdict, failure
        try:
            forward(batch)
        except Exception as error:
            failure = error
