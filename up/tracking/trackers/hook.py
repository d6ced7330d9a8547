"""The hook that feeds the trackers of a run with the rows of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from up.engine.hooks import Hook, Outline
from up.tracking.trackers.feed import Feed
from up.tracking.trackers.tracker import TrackedRun, Tracker
from up.types import Kwargs, StateDict


class Trackers(Hook):
    """Gives each tracker a row a step: what ``metrics.jsonl`` gets, training and evaluation in one.

    A row is sent when the evaluation of its step is done: rows never go backwards, and a run that is killed during an evaluation
    sends the whole row after it is resumed. The run ids are in the checkpoint, the last step sent is in the run folder.
    """

    def __init__(self, trackers: Mapping[str, Tracker], config: Kwargs) -> None:
        self.feeds = [Feed(name, tracker) for name, tracker in trackers.items()]
        self.config = config
        self._row: dict[str, float] = {}
        self._row_step = 0
        self._resumed: StateDict = {}

    def on_start(self, outline: Outline, step: int) -> None:
        self._outline, folder = outline, outline.folder.resolve()
        known = self._resumed.get("runs", {}) if self._resumed.get("folder") == str(folder) else {}
        for feed in self.feeds:
            feed.run_id = known.get(feed.name)
            feed.open(TrackedRun(folder.name, str(folder), self.config, feed.run_id))

    def add(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a line of ``metrics.jsonl`` to the row of its step."""
        if self._row_step < step:
            self._row = {name: value for name, value in self._row.items() if name.startswith("memory/")}
            self._row_step = step
        self._row |= {f"{phase}/{name}": value for name, value in values.items()}
        if phase == "eval" or (phase == "train" and not self._outline.is_evaluated(step)):
            for feed in self.feeds:
                feed.row(step, {**self._row, "epoch": round(step / self._outline.steps_per_epoch, 4)})
            self._row = {}

    def on_best(self, step: int, metric: str, value: float) -> None:
        for feed in self.feeds:
            feed.best({f"best/{metric}": value, "best/step": step})

    def on_save(self, step: int, path: Path) -> None:
        for feed in self.feeds:
            feed.poll()

    def on_end(self, step: int, reason: str) -> None:
        deadlines = [feed.ask_to_end(reason) for feed in self.feeds]
        for feed, until in zip(self.feeds, deadlines, strict=True):
            feed.close(until)

    def state_dict(self) -> StateDict:
        """Return the ids of the trackers' runs, and the row that waits for its evaluation."""
        for feed in self.feeds:
            feed.poll()
        runs = {feed.name: feed.run_id for feed in self.feeds if feed.run_id is not None}
        row = {"row": dict(self._row), "row_step": self._row_step} if self._row else {}
        return {"folder": str(self._outline.folder.resolve()), "runs": runs, **row}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from ``state_dict()``."""
        self._resumed = state
        self._row, self._row_step = dict(state.get("row", {})), state.get("row_step", 0)
