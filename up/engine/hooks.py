"""Hooks watch a run; they never change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from up.config.contract import Contract
from up.data.records import Batch
from up.intervals import Interval
from up.registry import Registry
from up.types import StateDict

HOOKS = Registry(
    "hook",
    {
        "auto_save_best": "up.engine.hooks:AutoSaveBest",
        "auto_checkpoint": "up.engine.hooks:AutoCheckpoint",
        "auto_save_metric": "up.engine.best:AutoSaveMetric",
        "feature_vis": "up.tracking.feature_maps:FeatureVis",
        "grad_cam": "up.tracking.grad_cam:GradCam",
        "gradient_collector": "up.engine.hooks:GradientCollector",
        "grad_clipper": "up.engine.clip:grad_clipper",
        "memory_analysis": "up.tracking.memory:MemoryAnalysis",
        "memory_checkpoint": "up.tracking.memory:MemoryCheckpoint",
        "memory_empty": "up.tracking.memory:MemoryEmpty",
        "reload": "up.engine.hooks:Reload",
        "train_val_logger": "up.tracking.tensorboard:TensorBoard",
    },
    contract=Contract("docs/add_a_part.md", base=lambda: (Hook,), occasions="on_"),
)


@dataclass(frozen=True)
class Look:
    """Conversion of prepared batches to something to look at."""

    pixels: Callable[[Tensor], NDArray[np.uint8]]
    """Converts an image (C, H, W), as the net gets it, to pixels (H, W, 3)."""
    captions: Callable[[Batch], Sequence[str] | None]
    """Returns the targets of each row in words; None where the task names none."""


@dataclass(frozen=True)
class Outline:
    """The run that a hook watches."""

    folder: Path
    model: nn.Module
    total_steps: int
    steps_per_epoch: int
    global_batch_size: int
    class_names: Sequence[str] | None = None
    sample_batch: Callable[[], Batch] | None = None
    """Returns a few evaluation images, always the same, ready for the net: on the device, ``image`` (B, 3, H, W) float and
    normalised, ``filename`` (B), ``gt`` where there are labels. It must not wait for other ranks: only the main rank calls
    it. None in a run without evaluation."""
    is_evaluated: Callable[[int], bool] = lambda step: False
    """Whether an evaluation follows a step, counted from 1."""
    settings: Mapping[str, bool | float | str] = field(default_factory=dict)
    """The values of the configuration that runs are compared by."""
    look: Look | None = None
    """How images and targets of prepared batches are shown."""

    def epoch_at(self, step: int) -> str:
        """Format ``epoch 3/12``; where the run is not a whole number of epochs, ``step 40/100 (epoch 1.67)``."""
        epoch = step / self.steps_per_epoch
        if self.total_steps % self.steps_per_epoch:
            return f"step {step:,}/{self.total_steps:,} (epoch {epoch:.3g})"
        return f"epoch {epoch:.5g}/{self.total_steps // self.steps_per_epoch}"


@dataclass(frozen=True)
class Findings:
    """Figures and scores of an evaluation beside its metrics, made when they are asked for."""

    figures: Callable[[], Mapping[str, bytes]]
    """Returns figures (PNG) by name."""
    scores: Callable[[], Mapping[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]]
    """Returns, for each class by name, whether each image is of it (n,), and its score (n,)."""


@dataclass(frozen=True)
class StepReport:
    """Report of a finished step. ``scalars`` are tensors: reading one waits for the device, so read them rarely."""

    step: int  # steps done, this one included
    lr: float
    scalars: Mapping[str, Tensor]
    images: int  # of all ranks
    wait_s: float  # seconds that the step waited for its data
    window: list[Mapping[str, Tensor] | None] = field(default_factory=lambda: [None, None], repr=False, compare=False)
    """Sums of scalars before and after this step, which hooks whose windows began together share."""


class Hook:
    """Base of hooks: a hook overrides the events that it watches.

    Only the main rank has hooks, except those that are ``on_every_rank``. ``config_note`` is logged where a configuration
    names the hook.
    """

    on_every_rank: ClassVar[bool] = False
    config_note: ClassVar[str] = ""

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the run should save after this step; the same on every rank."""
        return False

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        """Raise ``UserError`` if the hook cannot watch this net. Called before anything is created, and by ``check``."""

    def on_start(self, outline: Outline, step: int) -> None:
        """Called when training starts or resumes after ``step`` steps."""

    def on_first_batch(self, step: int, batch: Batch) -> None:
        """Called once, with the first micro-batch of this process as the net gets it, in the step after ``step`` steps.

        Reading a tensor waits for the device: keep a copy, and read it in a later event.
        """

    def on_step(self, report: StepReport) -> None:
        """Called after every step."""

    def on_out_of_memory(self, step: int, images: int) -> None:
        """Called when memory ran out in the step after ``step`` steps: from here on micro-batches have at most ``images``."""

    def on_best(self, step: int, metric: str, value: float) -> None:
        """Called when the evaluation at ``step`` is the best so far, by ``metric``; ``on_evaluation`` follows."""

    def on_intervals(self, step: int, intervals: Mapping[str, Interval]) -> None:
        """Called after an evaluation with the 95 % intervals of the metrics that have one; ``on_evaluation`` follows."""

    def on_findings(self, step: int, findings: Findings) -> None:
        """Called after an evaluation with what it found beside its metrics; ``on_evaluation`` follows."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after an evaluation."""

    def on_save(self, step: int, path: Path) -> None:
        """Called when a checkpoint is committed."""

    def on_end(self, step: int, reason: str) -> None:
        """Called at the end of a run: ``done``, ``preempted`` or ``failed``."""

    def state_dict(self) -> StateDict:
        """Return tensors and plain values that a resumed run needs to report the same."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; called before ``on_start``."""


class Hooks:
    """Hooks of a run, in the order in which they are called."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = list(hooks)
        self._savers = [hook for hook in self.hooks if type(hook).wants_checkpoint is not Hook.wants_checkpoint]
        self._steppers = [hook.on_step for hook in self.hooks if type(hook).on_step is not Hook.on_step]

    @property
    def wants_checkpoint(self) -> bool:
        """Whether any hook asks for one."""
        return any(hook.wants_checkpoint for hook in self._savers)

    def each(self, call: Callable[[Hook], object]) -> None:
        """Call ``call`` with every hook."""
        for hook in self.hooks:
            call(hook)

    def on_step(self, report: StepReport) -> None:
        """Call the hooks that watch steps."""
        for on_step in self._steppers:
            on_step(report)

    def state_dict(self) -> StateDict:
        """Return the states by class; of several hooks of a class, that of the first with a state."""
        states = [(type(hook).__name__, hook.state_dict()) for hook in reversed(self.hooks)]
        return {name: state for name, state in states if state}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the hooks that had a state."""
        for hook in self.hooks:
            if type(hook).__name__ in state:
                hook.load_state_dict(state[type(hook).__name__])


class AutoSaveBest(Hook):
    """Accept the hook of older files: the best checkpoint is always kept, as ckpt_best.pth."""


class AutoCheckpoint(Hook):
    """Accept the hook of older files: SIGTERM, SIGUSR1 and Ctrl-C always save before the run ends."""


class GradientCollector(Hook):
    """Accept the hook of older files: a loss that balances gradients, such as softmax_eql, collects its own."""

    def __init__(
        self,
        *,
        hook_module: str | list[str] | None = None,
        collect_func_module: str | list[str] | None = None,
        grad_type: str | None = None,
    ) -> None:
        del hook_module, collect_func_module, grad_type


class Reload(Hook):
    """Accept the hook of older files, with any kwargs: every process has the whole list of images, so no part is reloaded."""

    config_note = "has no effect: every process has the whole list of images, and each epoch has its own order"

    def __init__(self, **kwargs: object) -> None:
        del kwargs
