"""Hooks watch a run; they never change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from up.config.contract import Contract
from up.data.records import Batch
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
        "train_val_logger": "up.tracking.log:TensorBoard",
    },
    contract=Contract("docs/add_a_part.md", base=lambda: (Hook,), occasions="on_"),
)


@dataclass(frozen=True)
class Outline:
    """The run that a hook watches."""

    folder: Path
    model: nn.Module
    total_steps: int
    updates_per_epoch: int
    global_batch_size: int
    class_names: Sequence[str] | None = None
    sample_batch: Callable[[], Batch] | None = None
    """A few images to evaluate on, always the same, as the net takes them: on the device, ``image`` (B, 3, H, W) float and
    normalised, ``filename`` (B), ``gt`` where there are labels. It must not wait for other ranks: the main rank alone
    calls it. None in a run without evaluation."""
    is_evaluated: Callable[[int], bool] = lambda step: False
    """Whether an evaluation follows the update of that number, counted from 1."""

    def epoch_at(self, step: int) -> str:
        """``epoch 3/12`` after ``step`` updates; where the run is no whole number of epochs, ``step 40/100 (epoch 1.67)``."""
        epoch = step / self.updates_per_epoch
        if self.total_steps % self.updates_per_epoch:
            return f"step {step:,}/{self.total_steps:,} (epoch {epoch:.3g})"
        return f"epoch {epoch:.5g}/{self.total_steps // self.updates_per_epoch}"


@dataclass(frozen=True)
class UpdateReport:
    """One finished update. ``scalars`` are tensors: reading one waits for the device, so read them rarely."""

    step: int  # updates done, this one included
    lr: float
    scalars: Mapping[str, Tensor]
    images: int  # of all ranks
    wait_s: float  # how long the update waited for its data


class Hook:
    """Does nothing at every occasion; a hook overrides what it wants to see.

    Only the main rank has hooks, but for those that are ``on_every_rank``. ``config_note``: what to say of the hook where a
    file names it.
    """

    on_every_rank: ClassVar[bool] = False
    config_note: ClassVar[str] = ""

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the run should save after this step; every rank must say the same."""
        return False

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        """Raise ``UserError`` for what it cannot watch in this net. Asked before anything is created, and by ``check``."""

    def on_start(self, outline: Outline, step: int) -> None:
        """Training starts or resumes with ``step`` updates done."""

    def on_step(self, report: UpdateReport) -> None:
        """An update is done."""

    def on_best(self, step: int, metric: str, value: float) -> None:
        """The evaluation at ``step`` is the best so far, by the value of ``metric``; ``on_evaluation`` follows."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""

    def on_save(self, step: int, path: Path) -> None:
        """A checkpoint is committed."""

    def on_end(self, step: int, reason: str) -> None:
        """The run is over: ``done``, ``preempted`` or ``failed``."""

    def state_dict(self) -> StateDict:
        """Tensors and plain values that a resumed run must know to report the same."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``; called before ``on_start``."""


class Hooks:
    """The hooks of a run, in the order in which they are told."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = list(hooks)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether one of them does."""
        return any(hook.wants_checkpoint for hook in self.hooks)

    def each(self, tell: Callable[[Hook], object]) -> None:
        """Call ``tell`` with every hook."""
        for hook in self.hooks:
            tell(hook)

    def state_dict(self) -> StateDict:
        """By the kind of hook; of several of a kind, the first that has a state."""
        states = [(type(hook).__name__, hook.state_dict()) for hook in reversed(self.hooks)]
        return {name: state for name, state in states if state}

    def load_state_dict(self, state: StateDict) -> None:
        """Hooks that were not there when the state was saved begin anew."""
        for hook in self.hooks:
            if type(hook).__name__ in state:
                hook.load_state_dict(state[type(hook).__name__])


class AutoSaveBest(Hook):
    """Accepted for older files: the best checkpoint is always kept, as ckpt_best.pth."""


class AutoCheckpoint(Hook):
    """Accepted for older files: SIGTERM, SIGUSR1 and Ctrl-C always save before the run ends."""


class GradientCollector(Hook):
    """Accepted for older files: a loss that balances gradients, such as softmax_eql, collects its own."""

    def __init__(
        self,
        *,
        hook_module: str | list[str] | None = None,
        collect_func_module: str | list[str] | None = None,
        grad_type: str | None = None,
    ) -> None:
        del hook_module, collect_func_module, grad_type


class Reload(Hook):
    """Accepted for older files, with any kwargs: every process holds the whole list of images, so no part of it is loaded anew."""

    config_note = "has no effect: every process holds the whole list of images, and each epoch has an order of its own"

    def __init__(self, **kwargs: object) -> None:
        del kwargs
