"""The learning-rate range test of an experiment: its result in the unit of the configuration, and its plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from up.build.finetune import section_of
from up.build.trial import trial_session
from up.engine.range_test import RangeTest, range_test
from up.figures import FAINT, RIGHT, WRONG, render
from up.tasks.experiment import Experiment
from up.types import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FoundLr:
    """Result of a range test at a global batch size; ``per_image`` if the configuration's ``lr`` is multiplied by that."""

    test: RangeTest
    suggestions: dict[str, float]
    global_batch_size: int
    per_image: bool

    @property
    def lr(self) -> float:
        """The suggested value of ``trainer.optimizer.kwargs.lr``: that of ``valley``."""
        return self.suggestions["valley"] / (self.global_batch_size if self.per_image else 1)

    def as_json(self) -> Record:
        """Return curve and suggestions as plain values."""
        test = self.test
        curve = {"lr": test.lrs, "loss": test.losses, "smoothed": test.smoothed, "diverged": test.diverged}
        return {"suggestions": self.suggestions, "lr": self.lr, "global_batch_size": self.global_batch_size, **curve}

    def lines(self) -> Iterator[str]:
        """Format the result for the terminal."""
        test = self.test
        ending = f"the loss diverged at {test.lrs[-1]:.3g}" if test.diverged else f"without divergence up to {test.lrs[-1]:.3g}"
        yield f"{len(test.lrs)} steps of {self.global_batch_size} images from learning rate {test.lrs[0]:.3g}: {ending}"
        yield f"valley (in the longest descent): {self.suggestions['valley']:.3g}"
        yield f"steepest (where the loss falls fastest): {self.suggestions['steepest']:.3g}"
        unit = f", per image: warmup_register_type base multiplies it by {self.global_batch_size}" if self.per_image else ""
        yield f"suggestion: trainer.optimizer.kwargs.lr={self.lr:.3g}{unit}"


def find_lr(experiment: Experiment, *, steps: int, low: float, high: float) -> FoundLr:
    """Run the range test on the real data and net of an experiment, from its initial weights. Leaves no trace; deterministic.

    Trains what the run trains at the steps of this learning rate: with ``finetune.probe`` the head, unless it has an ``lr`` of its
    own; with ``finetune.unfreeze`` the blocks of the first epochs.

    Raises ``UserError`` where the loss diverges too early for a suggestion.
    """
    parts, session = trial_session(experiment, steps=steps)
    probe = section_of(experiment).probe
    first = probe.epochs * parts.times.steps_per_epoch if probe is not None and probe.lr is not None else 0
    test = range_test(session, steps=steps, low=low, high=high, first=first)
    schedule = experiment.config.trainer.lr_scheduler
    per_image = schedule is not None and schedule.warmup_register_type == "base"
    return FoundLr(test, test.suggestions(), parts.batches.global_batch_size, per_image)


def curve_of(found: FoundLr) -> bytes:
    """Draw the losses over the learning rate with the suggestions, as PNG."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(found.test.lrs, found.test.losses, color=FAINT, linewidth=0.7, label="loss")
        axes.plot(found.test.lrs, found.test.smoothed, color=RIGHT, label="smoothed")
        for (name, lr), style in zip(found.suggestions.items(), ("-", "--"), strict=True):
            axes.axvline(lr, color=WRONG, linestyle=style, label=f"{name}: {lr:.3g}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.set_ylim(0, 1.2 * max(found.test.smoothed))
        axes.legend(loc="upper left")

    return render(7.0, 4.5, draw)
