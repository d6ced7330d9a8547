"""A session between two steps: what it evaluates, saves, restores and reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from up.data.bad_images import BadImages
from up.data.records import Batch
from up.data.sampler import Cut, Share
from up.distributed.failures import Vote
from up.distributed.signals import StopRequest
from up.engine.bad_images import BadImageLog
from up.engine.checkpoint import CheckpointFolder, load_checkpoint
from up.engine.clip import Clip
from up.engine.ema import NoEma
from up.engine.evaluate import Evaluated, Evaluation, EvaluationInterrupted
from up.engine.fingerprint import RunFingerprint
from up.engine.hooks import Hook, Hooks, Outline
from up.engine.memory import Memory
from up.engine.parallel import RankBuffers
from up.engine.precision import Precision
from up.engine.session import Checkpointing, TrainingSession
from up.engine.step import Runner, StepData, StepOutput
from up.engine.stopping import EarlyStopping
from up.engine.timetable import AnyOf, Every, Retention
from up.errors import NumericalError, Problem, UserError
from up.intervals import Interval, percent_interval
from up.optim.schedules import Schedule

TOTAL, PER_EPOCH = 6, 3


class Log(Hook):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_start(self, outline: Outline, step: int) -> None:
        self.events.append(("start", step))

    def on_best(self, step: int, metric: str, value: float) -> None:
        self.events.append(("best", step))

    def on_intervals(self, step: int, intervals: Mapping[str, Interval]) -> None:
        self.events.append(("intervals", step))

    def on_evaluation(self, step: int, metrics: object) -> None:
        self.events.append(("evaluation", step))

    def on_save(self, step: int, path: Path) -> None:
        self.events.append(("save", step))

    def on_end(self, step: int, reason: str) -> None:
        self.events.append((reason, step))


class OneSchedule:
    """Constant; remembers what it observes."""

    def __init__(self) -> None:
        self.observed: list[float] = []

    def observe(self, step: int, metric: float) -> None:
        self.observed.append(metric)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None:
        pass


def evaluation_of(*scores: float | None) -> Evaluation:
    """One that gives these scores in turn; None is one that a signal breaks off."""
    left = iter(scores)

    def evaluate(model: nn.Module, ema: object, proposal: Callable[[], Vote]) -> Evaluated:
        score = next(left)
        if score is None:
            raise EvaluationInterrupted
        return Evaluated({"top1": score}, cast(Any, SimpleNamespace(main_metric="top1")))

    return cast(Evaluation, evaluate)


def session_in(folder: Path, evaluation: Evaluation | None = None, **changes: Any) -> TrainingSession:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    net, ema = nn.Linear(2, 2), NoEma()
    runner = Runner(net, loss_of=lambda net, batch: StepOutput(net(batch.image).sum()), stage=lambda batch: batch, mix=None, seed=0)
    session = TrainingSession(
        outline=Outline(folder, net, TOTAL, PER_EPOCH, 4),
        fingerprint=RunFingerprint("net: []", "0" * 64, 0, 4, None),
        runner=runner,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        schedule=cast(Schedule, OneSchedule()),
        precision=Precision(mode=None, device="cpu"),
        clip=Clip(),
        ema=ema,
        buffers=RankBuffers(net, ema, average=False),
        memory=Memory(net),
        loader_from=lambda step: pytest.fail("no data"),
        evaluation=evaluation,
        evaluate_every=Every(PER_EPOCH, 0, TOTAL),
        checkpointing=Checkpointing(CheckpointFolder(folder, keeping=None, config_sha256=""), AnyOf([Every(PER_EPOCH, 0, TOTAL)])),
        bad_images=BadImageLog(BadImages(max_bad=1, total=10), folder),
        hooks=Hooks([Log()]),
        stop=StopRequest(),
    )
    return replace(session, **changes)


def events(session: TrainingSession) -> list[tuple[str, int]]:
    log = session.hooks.hooks[0]
    assert isinstance(log, Log)
    return log.events


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())  # type: ignore[no-any-return]


def test_only_progress_changes(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    with pytest.raises(FrozenInstanceError):
        session.hooks = Hooks([])  # type: ignore[misc]
    session.progress.step = 4
    assert session.epoch == 1


def test_the_best_evaluation_is_saved_and_named(tmp_path: Path) -> None:
    session = session_in(tmp_path, evaluation_of(50.0, 40.0))
    session.evaluate(1)
    assert session.progress.best == {"metric": 50.0, "step": 1, "name": "top1"}
    assert session.owes_checkpoint(1)  # no step of the timetable
    session.progress.step = 1
    session.save(1)
    assert not session.owes_checkpoint(1)
    session.evaluate(2)
    assert session.progress.best["step"] == 1
    assert not session.owes_checkpoint(2)
    assert events(session) == [
        *(("best", 1), ("intervals", 1), ("evaluation", 1)),
        *(("save", 1), ("intervals", 2), ("evaluation", 2)),
    ]
    assert load_checkpoint(tmp_path / "ckpt_best.pth")["step"] == 1
    assert cast(OneSchedule, session.schedule).observed == [50.0, 40.0]


def test_scores_and_weights_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    session = session_in(tmp_path, evaluation_of(float("nan")))
    with pytest.raises(NumericalError, match="top1 nan"):
        session.evaluate(3)
    with torch.no_grad():
        cast(nn.Linear, session.model).weight[0, 0] = float("inf")
    with pytest.raises(NumericalError, match="weight is not finite"):
        session.save(3)
    assert not list(tmp_path.glob("ckpt_*"))


def test_an_evaluation_that_is_broken_off_is_made_up_for(tmp_path: Path) -> None:
    session = session_in(tmp_path, evaluation_of(None))
    session.progress.step = 3
    session.evaluate(3)
    session.stop.note(15)
    assert session.finish(3, Vote.GO) is Vote.STOP
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"], status(tmp_path)["step"]) == ("preempted", 75, 3)
    path = tmp_path / "ckpt_latest.pth"
    later = session_in(tmp_path, evaluation_of(60.0))
    later.restore(path, load_checkpoint(path), is_own=True)
    assert later.progress.owes_evaluation
    assert later.resume() == 3
    assert later.progress.metrics == {"top1": 60.0}
    assert events(later)[:2] == [("start", 3), ("best", 3)]
    assert later.progress.saved_step == 3


@pytest.mark.parametrize("is_own", [True, False])
def test_restoring_gives_every_part_its_state(tmp_path: Path, is_own: bool) -> None:
    session = session_in(tmp_path)
    session.runner.net(torch.ones(1, 2)).sum().backward()
    session.precision.step(session.optimizer, session.clip)
    session.progress.step = 2
    session.save(2)
    path = tmp_path / "ckpt_latest.pth"
    later = session_in(tmp_path)
    later.restore(path, load_checkpoint(path), is_own=is_own)
    for name, value in session.model.state_dict().items():
        assert torch.equal(later.model.state_dict()[name], value)
    assert later.optimizer.state_dict()["state"].keys() == session.optimizer.state_dict()["state"].keys()
    assert later.progress.step == 2
    assert later.progress.saved_step == (2 if is_own else None)


@pytest.mark.parametrize("part", ["optimizer", "hooks", "precision"])
def test_a_state_with_a_part_left_out_is_refused(tmp_path: Path, part: str) -> None:
    session = session_in(tmp_path)
    session.save(0)
    path = tmp_path / "ckpt_latest.pth"
    state = {name: value for name, value in load_checkpoint(path).items() if name != part}
    with pytest.raises(UserError, match=part):
        session_in(tmp_path).restore(path, state, is_own=True)


def test_bad_images_are_listed_and_limited(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    bad = [Problem("is empty", file="train.txt", line=number) for number in (1, 2)]
    session.vote(StepData([Batch(bad=[bad[0], None])], 0.0))
    session.vote(StepData([Batch(bad=[bad[0]])], 0.0))
    listed = [json.loads(line) for line in (tmp_path / "bad_images.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"], line["step"]) for line in listed] == [("train.txt", 1, 0)]
    with pytest.raises(UserError, match="max_bad"):
        session.vote(StepData([Batch(bad=[bad[1]])], 0.0))


def test_a_failure_to_read_and_a_signal_are_votes(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    assert session.vote(StepData([], 0.0)) is Vote.GO
    with pytest.raises(UserError, match="no image"):
        session.vote(StepData([], 0.0, failure=UserError("no image")))
    session.stop.note(2)
    assert session.vote(StepData([], 0.0)) is Vote.INTERRUPT


def test_the_end_is_reported(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.progress.step = TOTAL
    assert session.finish(TOTAL, Vote.GO) is Vote.GO
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"], status(tmp_path)["epoch"]) == ("done", 0, 2)
    assert events(session) == [("done", TOTAL)]


def test_the_best_evaluations_keep_their_checkpoints(tmp_path: Path) -> None:
    """Two newest, and the two best of all that were evaluated; a checkpoint between two evaluations has no score."""
    folder = CheckpointFolder(tmp_path, keeping=Retention(2, AnyOf([]), best=2), config_sha256="")
    checkpointing = Checkpointing(folder, AnyOf([]))
    session = session_in(tmp_path, evaluation_of(50.0, 70.0, 60.0, 70.0, 10.0, 20.0), checkpointing=checkpointing)
    owed = []
    for step in range(1, 7):
        session.progress.step = step
        session.evaluate(step)
        owed.append(session.owes_checkpoint(step))
        session.save(step)
    assert owed == [True, True, True, True, False, False]
    assert [(path.name, score) for path, score in folder.ranked()[:3]] == [
        ("ckpt_s2.pth", 70.0),
        ("ckpt_s4.pth", 70.0),
        ("ckpt_e2.pth", 20.0),
    ]
    assert sorted(path.name for path in tmp_path.glob("ckpt_[es]*.pth")) == [
        "ckpt_e2.pth",
        "ckpt_s2.pth",
        "ckpt_s4.pth",
        "ckpt_s5.pth",
    ]
    session.progress.step = 7
    session.save(7)
    assert "ckpt_s7.pth" not in [path.name for path, _ in folder.ranked()]
    resumed = session_in(tmp_path, evaluation_of(65.0, 71.0), checkpointing=checkpointing)
    resumed.restore(tmp_path / "ckpt_latest.pth", load_checkpoint(tmp_path / "ckpt_latest.pth"), is_own=True)
    for step, is_owed in ((8, False), (9, True)):
        resumed.evaluate(step)
        assert resumed.owes_checkpoint(step) is is_owed


def test_a_later_checkpoint_within_the_noise_is_the_best(tmp_path: Path) -> None:
    """Of 100 images: at 80 % a standard error is 4 points, so that 77 after 80 is as good, and 73 is not."""

    def evaluate(model: nn.Module, ema: object, proposal: Callable[[], Vote]) -> Evaluated:
        score = left.pop(0)
        intervals = {"top1": percent_interval([(int(score), 100)])}
        return Evaluated({"top1": score}, cast(Any, SimpleNamespace(main_metric="top1")), intervals)

    left = [70.0, 80.0, 73.0, 77.0, 75.0, 78.0]
    folder = CheckpointFolder(tmp_path, keeping=None, config_sha256="")
    session = session_in(tmp_path, cast(Evaluation, evaluate), checkpointing=Checkpointing(folder, AnyOf([]), best_within=1.0))
    best = []
    for step in range(1, 6):
        session.progress.step = step
        session.evaluate(step)
        best.append(session.progress.best["step"])
        session.save(step)
    assert best == [1, 2, 2, 4, 4]
    interval = list(percent_interval([(77, 100)]))
    assert session.progress.best == {"metric": 77.0, "step": 4, "name": "top1", "interval": interval, "highest": 80.0}
    resumed = session_in(tmp_path, cast(Evaluation, evaluate), checkpointing=session.checkpointing)
    resumed.restore(tmp_path / "ckpt_latest.pth", load_checkpoint(tmp_path / "ckpt_latest.pth"), is_own=True)
    resumed.evaluate(6)
    assert resumed.progress.best["step"] == 6
    assert resumed.progress.highest == 80.0


def test_early_stopping_ends_the_steps_saves_and_is_done(tmp_path: Path) -> None:
    rule = EarlyStopping(patience=2)
    session = session_in(tmp_path, evaluation_of(50.0, 40.0, 45.0), stopping=rule, loader_from=lambda step: Loader())
    taken = []
    for step, _ in enumerate(session.steps(from_step=0), 1):
        taken.append(step)
        session.progress.step = step
        session.evaluate(step)
        if session.owes_checkpoint(step):
            session.save(step)
    assert taken == [1, 2, 3]
    assert session.finish(3, Vote.GO) is Vote.GO
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"], status(tmp_path)["step"]) == ("done", 0, 3)
    assert "early stopping" in status(tmp_path)["reason"]
    state = load_checkpoint(tmp_path / "ckpt_latest.pth")
    assert (state["step"], state["early_stopping"]["waited"]) == (3, 2)
    again = session_in(tmp_path, stopping=EarlyStopping(patience=2), loader_from=lambda step: pytest.fail("no more data"))
    again.restore(tmp_path / "ckpt_latest.pth", state, is_own=True)
    assert list(again.steps(from_step=3)) == []


def test_a_checkpoint_of_before_early_stopping_still_restores(tmp_path: Path) -> None:
    session_in(tmp_path).save(0)
    state = load_checkpoint(tmp_path / "ckpt_latest.pth")
    del state["early_stopping"], state["scores"]
    session_in(tmp_path, stopping=EarlyStopping(patience=2)).restore(tmp_path / "ckpt_latest.pth", state, is_own=True)


class Loader:
    """Steps without end, of one image each."""

    def cut(self, step: int) -> Cut:
        return Cut([Share(1.0, 1.0)], 1)

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return ((step, [Batch(filename=["x"])]) for step in range(100))
