"""A tracker in a process of its own: what reaches it, and what its failures cost."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from tests.harness.facts import tells
from tests.harness.faulty import is_alive, wait_for
from tests.harness.ranks import ROOT
from tests.harness.trackers import Failing, Recorder, events
from up.engine.hooks import Outline
from up.tracking.log import LOGGER
from up.tracking.trackers.feed import Feed
from up.tracking.trackers.hook import Trackers
from up.tracking.trackers.mlflow import named
from up.tracking.trackers.tracker import TrackedRun, flat
from up.types import StateDict


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    LOGGER.addHandler(caplog.handler)
    LOGGER.propagate = False
    caplog.set_level(logging.WARNING, "up")
    return caplog


def feed(folder: Path, tracker: Recorder, *steps: int, state: str = "done", run_id: str | None = None) -> Feed:
    """Rows for these steps, and the end."""
    made = Feed("fake", tracker)
    made.open(TrackedRun("run", str(folder), {"saver": {"a": 1}}, run_id))
    for step in steps:
        made.row(step, {"train/loss": 1 / step})
    made.close(made.ask_to_end(state))
    return made


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "trackers" / "fake.json").read_text())  # type: ignore[no-any-return]


def test_rows_and_the_end_arrive_in_order(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "events"
    made = feed(tmp_path, Recorder(file=str(file)), 1, 2, 3, state="preempted")
    assert [step for step, _ in events(file, "row")] == [1, 2, 3]
    assert events(file, "finish") == [["preempted"]]
    assert events(file, "start") == [[made.run_id, str(tmp_path), {"a": 1}]]
    assert record(tmp_path) == {"run_id": made.run_id, "last_step": 3}
    assert not told.messages


def test_a_later_start_continues_the_line_without_repeated_steps(tmp_path: Path) -> None:
    file = tmp_path / "events"
    first = feed(tmp_path, Recorder(file=str(file)), 1, 2, 3, state="failed")
    second = feed(tmp_path, Recorder(file=str(file)), 2, 3, 4, run_id=first.run_id)
    assert second.run_id == first.run_id
    assert [step for step, _ in events(file, "row")] == [1, 2, 3, 4]
    other = feed(tmp_path, Recorder(file=str(file)), 2, run_id="of another checkpoint")
    assert (other.run_id, record(tmp_path)["last_step"]) == ("of another checkpoint", 2)


def test_a_checkpoint_has_the_run_and_the_row_that_waits_for_its_evaluation(tmp_path: Path) -> None:
    def started(state: StateDict | None = None) -> Trackers:
        hook = Trackers({"fake": Recorder(file=str(tmp_path / "events"))}, {})
        hook.load_state_dict(state or {})
        hook.on_start(Outline(tmp_path, nn.Identity(), 4, 2, 8, is_evaluated=lambda step: step == 2), 0 if state is None else 2)
        return hook

    first = started()
    wait_for(lambda: first.state_dict()["runs"])
    first.add("train", 2, {"loss": 0.5})
    state = first.state_dict()
    first.on_end(2, "preempted")
    assert state == {
        "folder": str(tmp_path),
        "runs": {"fake": record(tmp_path)["run_id"]},
        "row": {"train/loss": 0.5},
        "row_step": 2,
    }
    (tmp_path / "trackers" / "fake.json").unlink()  # the checkpoint alone names the run
    second = started(state)
    second.add("eval", 2, {"top1": 50.0})
    second.on_end(2, "done")
    assert events(tmp_path / "events", "row") == [[2, {"train/loss": 0.5, "eval/top1": 50.0, "epoch": 1.0}]]
    assert {run for run, *_ in events(tmp_path / "events", "start")} == {*state["runs"].values()}


@pytest.mark.parametrize(
    ("how", "at", "words", "lost"),
    [
        ("raise", "log", ("503 from the server",), 2),
        ("raise", "start", ("503",), 4),
        ("disk", "log", ("No space left",), 2),
        ("hang", "log", ("answered",), 2),
        ("hold", "log", ("answered",), 2),
        ("hang", "finish", ("in time",), 0),
        ("end", "log", ("code 3",), 2),
    ],
)
def test_a_failure_is_reported_once_and_costs_no_time(
    tmp_path: Path,
    told: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    at: str,
    words: tuple[str, ...],
    lost: int,
) -> None:
    file, log = tmp_path / "events", tmp_path / "trackers" / "fake.log"
    made = Feed("fake", Failing(file=str(file), how=how, at=at))
    made.open(TrackedRun("run", str(tmp_path), {}))
    for step in (1, 2, 3, 4):
        made.row(step, {"train/loss": 1.0})
    wait_for(lambda: made.poll() or (log.exists() and "about to fail" in log.read_text() if at != "finish" else not made._open))
    monkeypatch.setattr(Feed, "CLOSE_S", dict.fromkeys(("done", "killed"), 1.0 if how in ("hang", "hold") else 20.0))
    monkeypatch.setattr(Feed, "PATIENCE_S", 0.3 if at == "log" and how in ("hang", "hold") else 60.0)
    begun = time.monotonic()
    made.close(made.ask_to_end("done"))
    assert time.monotonic() - begun < 20
    first, *rest = told.messages
    assert tells(first, "fake", *words)
    assert "\n" not in first
    assert len(rest) == (1 if lost else 0)
    assert not lost or tells(rest[0], lost, "metrics.jsonl")
    assert [step for step, _ in events(file, "row")] == ([] if at == "start" else [1, 2] if lost else [1, 2, 3, 4])
    assert "about to fail" in (tmp_path / "trackers" / "fake.log").read_text()


def test_a_full_queue_drops_rows_and_counts_them(
    tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Feed, "CLOSE_S", dict.fromkeys(("done", "killed"), 0.5))
    monkeypatch.setattr(Feed, "LONGEST_QUEUE", 10_000)
    made = Feed("fake", Recorder(file=str(tmp_path / "events")))
    made.open(TrackedRun("run", str(tmp_path), {}))
    assert made._process is not None
    os.kill(made._process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    for step in range(1, 3001):
        made.row(step, {"train/loss": 0.0})
    assert time.monotonic() - begun < 5
    assert len(made._queue) <= 10_000
    made.close(made.ask_to_end("done"))
    assert tells(told.messages[0], "dropped")
    assert tells(told.messages[1], "3,000 rows")


_DYING = """
import os, signal, sys
from pathlib import Path
from tests.harness.trackers import Failing
from up.tracking.trackers.feed import Feed
from up.tracking.trackers.tracker import TrackedRun
folder = Path(sys.argv[1])
Feed.CLOSE_S = {"killed": 2.0}
feed = Feed("fake", Failing(file=str(folder / "events"), how=sys.argv[2]))
feed.open(TrackedRun("run", str(folder), {}))
for step in range(1, 5):
    feed.row(step, {"a": 1.0})
while len(feed._open) > 2:
    feed.poll()
print(feed._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["", "hang"])
def test_a_killed_training_leaves_no_process(tmp_path: Path, how: str) -> None:
    """The rest is sent, and the run is marked as failed; a tracker that hangs is ended."""
    words = [sys.executable, "-c", _DYING, str(tmp_path), how]
    ended = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pid = int(ended.stdout)
    wait_for(lambda: not is_alive(pid))
    file = tmp_path / "events"
    assert [step for step, _ in events(file, "row")] == ([1, 2] if how else [1, 2, 3, 4])
    assert events(file, "finish") == ([] if how else [["failed"]])


def test_flat_values_of_a_configuration() -> None:
    nested = {"a": {"b": 1, "c": {}}, "net": [{"name": "head"}, {"name": "neck"}], "mean": [1, 2]}
    assert dict(flat(nested)) == {"a.b": 1, "a.c": {}, "net.0.name": "head", "net.1.name": "neck", "mean": [1, 2]}


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("eval/AP@0.5", "eval/AP_0.5"),
        ("eval/mAP@[.5:.95]", "eval/mAP__.5:.95_"),
        ("train/loss (box)", "train/loss _box_"),
        ("saver.overwrite@", "saver.overwrite_"),
        ("eval/recall of é", "eval/recall of é"),
        ("memory/cuda:0 - peak_mb", "memory/cuda:0 - peak_mb"),
    ],
)
def test_mlflow_gets_names_that_it_takes(name: str, taken: str) -> None:
    """A row with one other name is lost as a whole."""
    assert named(name) == taken
