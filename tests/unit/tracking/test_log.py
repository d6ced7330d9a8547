"""metrics.jsonl after a kill, TensorBoard's file, the log, and the meters."""

from __future__ import annotations

import json
import logging
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import nn

from tests.harness.facts import tells
from tests.harness.runs import numbers_of
from up.data.sampler import Share
from up.engine.hooks import Outline, StepReport
from up.engine.meter import StepMeter
from up.engine.step import StepOutput
from up.tracking.log import OF_THE_MACHINE, LogFile, MetricsFile, WindowMeter, cut_after
from up.tracking.tensorboard import TensorBoard


def outline(folder: Path) -> Outline:
    return Outline(folder, nn.Identity(), total_steps=10, steps_per_epoch=5, global_batch_size=4)


def report(step: int, loss: float) -> StepReport:
    return StepReport(step, lr=0.1, scalars={"loss": torch.tensor(loss)}, images=4, wait_s=0.0)


def test_means_over_the_interval(tmp_path: Path) -> None:
    hook = MetricsFile(every=2)
    hook.on_start(outline(tmp_path), 0)
    for step, loss in ((1, 1.0), (2, 3.0), (3, 5.0), (4, 5.0)):
        hook.on_step(report(step, loss))
    hook.on_evaluation(4, {"top1": 50.0})
    assert numbers_of(tmp_path) == [
        {"phase": "train", "step": 2, "epoch": 0.4, "lr": 0.1, "loss": 2.0},
        {"phase": "train", "step": 4, "epoch": 0.8, "lr": 0.1, "loss": 5.0},
        {"phase": "eval", "step": 4, "epoch": 0.8, "top1": 50.0},
    ]


def test_steps_without_scalars(tmp_path: Path) -> None:
    """A scalar is a mean over the steps that have it."""
    hook = MetricsFile(every=2)
    hook.on_start(outline(tmp_path), 0)
    for step in (1, 2, 3):
        hook.on_step(replace(report(step, 0.0), scalars={}))
    hook.on_step(report(4, 6.0))
    assert numbers_of(tmp_path) == [
        {"phase": "train", "step": 2, "epoch": 0.4, "lr": 0.1},
        {"phase": "train", "step": 4, "epoch": 0.8, "lr": 0.1, "loss": 6.0},
    ]


def test_speed_and_memory_of_the_window_leave_out_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("up.tracking.speed.time.perf_counter", lambda: clock[0])
    hook = MetricsFile(every=2)
    hook.on_start(outline(tmp_path), 0)
    for step in (1, 2, 3, 4):
        clock[0] += 0.5
        hook.on_step(replace(report(step, 1.0), wait_s=0.1))
        if step == 3:
            clock[0] += 60
            hook.on_evaluation(step, {})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of_training = [line for line in lines if line["phase"] == "train"]
    assert [(line["images_per_s"], line["data_wait"]) for line in of_training] == [(8.0, 0.2), (8.0, 0.2)]
    assert all(line["peak_memory"] > 1e6 for line in of_training)
    assert [*of_training[0]][-3:] == [*OF_THE_MACHINE]


def test_lines_of_lost_updates_are_cut_and_made_again(tmp_path: Path) -> None:
    hook = MetricsFile(every=1)
    hook.on_start(outline(tmp_path), 0)
    for step in (1, 2, 3):
        hook.on_step(report(step, float(step)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')  # cut off by a kill
    again = MetricsFile(every=1)
    again.on_start(outline(tmp_path), 2)
    again.on_step(report(3, 3.0))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_scalars_for_tensorboard(tmp_path: Path) -> None:
    """What TensorBoard reads; a resumed run says from which step on it is made again."""
    hook = TensorBoard(freq=2)
    hook.on_start(Outline(tmp_path, nn.Identity(), 4, 2, 8), 0)
    for step in (1, 2):
        hook.on_step(StepReport(step, 0.5, {"loss": torch.tensor(float(step))}, 8, 0.0))
    hook.on_evaluation(2, {"top1": 25.0})
    hook.on_end(2, "preempted")
    hook.on_start(Outline(tmp_path, nn.Identity(), 4, 2, 8), 2)
    hook.on_end(2, "preempted")
    files = [list(events_of(path)) for path in (tmp_path / "tensorboard").iterdir()]
    first, second = sorted(files, key=len, reverse=True)
    assert first[0].file_version == second[0].file_version == "brain.Event:2"
    points = [(event.step, value.tag, value.simple_value) for event in first for value in event.summary.value]
    assert points == [(2, "train/lr", 0.5), (2, "train/loss", 1.5), (2, "eval/top1", 25.0)]
    assert (second[1].step, second[1].session_log.status) == (3, SessionLog.START)


def events_of(path: Path) -> Iterator[Event]:
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_full_disk_is_reported_once_by_tensorboard_and_ends_no_run(tmp_path: Path) -> None:
    """The next checkpoint reports it, too, and ends the run."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        hook = TensorBoard(freq=1)
        hook.on_start(Outline(tmp_path, nn.Identity(), 10_000, 2, 8), 0)
        try:
            logging.getLogger("up").addHandler(LogFile(tmp_path / "train.log"))
            for step in range(1, 10_000):
                hook.on_step(StepReport(step, 0.5, {"loss": torch.tensor(1.0)}, 8, 0.0))
            hook.on_end(9_999, "done")
            os._exit(0)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert tells(line, "TensorBoard", "scalars")


def test_a_log_on_a_full_disk_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile("/dev/full")
    log.handle(logging.makeLogRecord({"msg": "step 1"}))
    with suppress(OSError):
        log.close()
    assert capsys.readouterr().err == ""


def test_micro_batches_weigh_by_their_images() -> None:
    meter = StepMeter()
    meter.weigh(StepOutput(torch.tensor(1.0), {"accuracy_top1": torch.tensor(0.0)}), Share(0.75, 0.75))
    meter.weigh(StepOutput(torch.tensor(5.0), {"accuracy_top1": torch.tensor(100.0)}), Share(0.25, 0.25))
    assert {name: float(value) for name, value in meter.take().items()} == {"loss": 2.0, "accuracy_top1": 25.0}
    assert meter.take() == {}


def test_a_window_is_empty_after_reading() -> None:
    window = WindowMeter()
    window.add({"loss": torch.tensor(1.0)})
    window.add({"loss": torch.tensor(2.0)})
    assert window.read() == {"loss": 1.5}
    assert window.read() == {}


def test_a_scalar_that_some_steps_lack_is_a_mean_over_the_others() -> None:
    """Such as the accuracy, which batches with mixed labels do not have; across a resume too, and from an earlier state."""
    windows, resumed = [WindowMeter() for _ in range(2)], WindowMeter()
    steps = [{"loss": torch.tensor(1.0), "acc": torch.tensor(50.0)}, {"loss": torch.tensor(2.0)}, {"loss": torch.tensor(6.0)}]
    for number, scalars in enumerate(steps, 1):
        report = StepReport(number, 0.1, scalars, 8, 0.0)
        for window in windows:
            window.add_step(report)
    state = windows[0].state_dict()
    assert [window.read() for window in windows] == [{"loss": 3.0, "acc": 50.0}] * 2
    resumed.load_state_dict(state)
    resumed.add({"acc": torch.tensor(100.0)})
    assert resumed.read() == {"loss": 3.0, "acc": 75.0}
    resumed.load_state_dict({"sums": {"loss": torch.tensor(9.0)}, "updates": 3})
    resumed.add({"loss": torch.tensor(3.0)})
    assert resumed.read() == {"loss": 3.0}


def test_windows_that_began_together_add_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hooks with one interval cost one addition a step; one that began later has sums of its own."""
    additions, add = list[int](), torch._foreach_add

    def counted(sums: list[torch.Tensor], values: list[torch.Tensor]) -> object:
        additions.append(len(sums))
        return add(sums, values)

    monkeypatch.setattr(torch, "_foreach_add", counted)
    windows, late = [WindowMeter() for _ in range(3)], WindowMeter()
    for step in range(1, 4):
        report = StepReport(step, 0.1, {"loss": torch.tensor(float(step)), "accuracy": torch.tensor(1.0)}, 8, 0.0)
        for window in [*windows, *([late] if step > 1 else [])]:
            window.add_step(report)
    assert additions == [2, 2, 2]  # steps 2 and 3, and step 3 of the late one
    states = [window.state_dict() for window in windows]
    assert [window.read() for window in windows] == [{"loss": 2.0, "accuracy": 1.0}] * 3
    assert late.read() == {"loss": 2.5, "accuracy": 1.0}
    resumed = WindowMeter()
    resumed.load_state_dict(states[0])
    resumed.add_step(StepReport(4, 0.1, {"loss": torch.tensor(6.0), "accuracy": torch.tensor(1.0)}, 8, 0.0))
    assert resumed.read() == {"loss": 3.0, "accuracy": 1.0}


def test_tensorboard_leaves_out_the_first_steps(tmp_path: Path) -> None:
    hook = TensorBoard(freq=2, skip_first_k=3)
    hook.on_start(Outline(tmp_path, nn.Identity(), 6, 2, 8), 0)
    for step in range(1, 7):
        hook.on_step(StepReport(step, 0.1, {"loss": torch.tensor(100.0 if step <= 3 else step)}, 8, 0.0))
    hook.on_end(6, "done")
    (file,) = (tmp_path / "tensorboard").iterdir()
    values = [(event.step, value.tag, value.simple_value) for event in events_of(file) for value in event.summary.value]
    assert [(step, value) for step, tag, value in values if tag == "train/loss"] == [(4, 4.0), (6, 5.5)]


def test_lines_after_a_step_are_dropped_whatever_their_names(tmp_path: Path) -> None:
    """Names may have other line separators and braces; a full disk cuts a line off anywhere."""
    path = tmp_path / "bad_images.jsonl"
    lines = [json.dumps({"step": step, "file": "a\u2028b\x85{c}.jpg"}, ensure_ascii=False) for step in (1, 3, 5)]
    path.write_text("\n".join([*lines, lines[0][: lines[0].index("}") + 1]]), encoding="utf-8")
    cut_after(path, 3)
    assert path.read_text(encoding="utf-8") == f"{lines[0]}\n{lines[1]}\n"
