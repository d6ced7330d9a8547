"""Control rows: what the same budget gives without the search.

For every stage the file's own values; for networks and hyper-parameters random points; for networks that one training finds by
itself random networks of its space, beside the network found, trained by itself as long; for augmentation TrivialAugmentWide
(Müller and Hutter 2021). A search that does not beat them says so in its report (Li and Talwalkar 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from up.schema.search import ConstraintsSection, StageSection
from up.search.algorithm import History, Suggestion, Trial, Work
from up.search.found import BEST
from up.search.settings import plain_of, values_of
from up.search.space import Point
from up.search.stages import Stage
from up.types import Json

OWN, RANDOM, TRIVIAL = "own values", "random", "TrivialAugmentWide"
FOUND = "the network found"  # trained as controls are: the network that a search by one training chose
_TRANSFORMS = "dataset.train.dataset.kwargs.transformer"
_OF_FLOATS = ("to_tensor", "custom_to_tensor", "v2.ToDtype", "normalize")
_SHARE = 5  # control trials are a fifth of the stage's
_MOST_DRAWS, _MOST_FAILURES = 50, 3  # of random points that are outside the limits, or fail: no further ones are drawn


class Controls:
    """Trains each control the number of times in ``wanted``."""

    def __init__(self, stage: Stage, wanted: Mapping[str, int]) -> None:
        self._stage, self._wanted = stage, wanted

    def suggest(self, history: History) -> Suggestion:
        """Return the first control that has not been trained often enough; the network found only once the stage has one.

        Random points that fail, or are outside the limits, are replaced by others, up to a number.
        """
        for control, times in self._wanted.items():
            tried = [each for each in history.trials if each.note.get("control") == control]
            failed, rejected = ([each for each in tried if each.state == state] for state in ("failed", "rejected"))
            is_given_up = len(failed) >= max(_MOST_FAILURES, times) or len(rejected) >= _MOST_DRAWS
            left_out = len(failed) + len(rejected) if control == RANDOM else 0
            if len(tried) - left_out < times and not is_given_up:
                best = self._stage.folder / BEST
                if control != FOUND:
                    return Work(self._drawn(history) if control == RANDOM else {}, note={"control": control})
                return Work(note={"control": control, "fragments": [str(best)]}) if best.is_file() else None
        return None

    def _drawn(self, history: History) -> Point:
        """Draw a point of the space, or a network from the space of a supernet."""
        own = getattr(self._stage.algorithm, "random_network", None)
        return self._stage.space.sample(history.rng()) if own is None else own(history.rng(), plain_of(self._stage.tree))

    def observe(self, trial: Trial) -> None:
        """Take no note: the history has the trial."""

    def settings(self, trial: Trial, history: History, config: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the values of a control: none for the file's own."""
        if trial.note.get("control") == TRIVIAL:
            return {_TRANSFORMS: with_trivial_augment(config)}
        return values_of(self._stage.space, trial.point) if trial.note.get("control") == RANDOM else {}

    def described(self, point: Point) -> Mapping[str, Json]:
        """Return a point in words: nothing of a network that was drawn."""
        return {path: value for path, value in point.items() if path in self._stage.space.names}


def with_trivial_augment(config: Mapping[str, Json]) -> list[Json]:
    """Return the transforms of training with TrivialAugmentWide before the first of floats, such as ``to_tensor``."""
    listed = list(config["dataset"]["train"]["dataset"]["kwargs"].get("transformer") or [])
    at = next((index for index, part in enumerate(listed) if part.get("type") in _OF_FLOATS), len(listed))
    return [*listed[:at], {"type": "v2.TrivialAugmentWide"}, *listed[at:]]


def control_stage(stage: Stage) -> Stage | None:
    """Return the stage that trains the controls of ``stage``; None where it has none."""
    section = stage.section
    if not isinstance(section, StageSection) or section.control == 0:
        return None
    is_augmentation = stage.name == "augment" or section.algorithm == "pba"
    times = max(1, stage.limit // _SHARE) if section.control < 0 else section.control
    has_points = section.algorithm != "random" and len(stage.space) and getattr(stage.algorithm, "settings", None) is None
    others = {TRIVIAL: 1} if is_augmentation else {RANDOM: times} if has_points else {}
    if hasattr(stage.algorithm, "random_network"):
        others = {RANDOM: times, FOUND: 1}
    algorithm = Controls(stage, {OWN: 1, **others})
    limits = ConstraintsSection() if is_augmentation else stage.constraints
    return replace(stage, name=f"{stage.name}/control", algorithm=algorithm, limit=0, enqueue=(), constraints=limits)
