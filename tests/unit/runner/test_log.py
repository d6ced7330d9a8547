"""metrics.jsonl after a kill, and the meters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from up.runner.hooks import Outline, UpdateReport
from up.runner.log import MetricsFile
from up.runner.meter import StepMeter, WindowMeter
from up.runner.runner import StepOutput


def outline(folder: Path) -> Outline:
    return Outline(folder, nn.Identity(), total_steps=10, updates_per_epoch=5, global_batch_size=4)


def report(step: int, loss: float) -> UpdateReport:
    return UpdateReport(step, lr=0.1, scalars={"loss": torch.tensor(loss)}, images=4, wait_s=0.0)


def test_means_over_the_interval(tmp_path: Path) -> None:
    hook = MetricsFile(freq=2)
    hook.on_start(outline(tmp_path), 0)
    for step, loss in ((1, 1.0), (2, 3.0), (3, 5.0), (4, 5.0)):
        hook.on_step(report(step, loss))
    hook.on_evaluation(4, {"top1": 50.0})
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == [
        {"phase": "train", "step": 2, "epoch": 0.4, "lr": 0.1, "loss": 2.0},
        {"phase": "train", "step": 4, "epoch": 0.8, "lr": 0.1, "loss": 5.0},
        {"phase": "eval", "step": 4, "epoch": 0.8, "top1": 50.0},
    ]


def test_lines_of_lost_updates_are_cut_and_made_again(tmp_path: Path) -> None:
    hook = MetricsFile(freq=1)
    hook.on_start(outline(tmp_path), 0)
    for step in (1, 2, 3):
        hook.on_step(report(step, float(step)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')  # cut off by a kill
    again = MetricsFile(freq=1)
    again.on_start(outline(tmp_path), 2)
    again.on_step(report(3, 3.0))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_micro_batches_weigh_by_their_images() -> None:
    meter = StepMeter()
    meter.add(StepOutput(torch.tensor(1.0), {"accuracy_top1": torch.tensor(0.0)}), 0.75)
    meter.add(StepOutput(torch.tensor(5.0), {"accuracy_top1": torch.tensor(100.0)}), 0.25)
    assert {name: float(value) for name, value in meter.take().items()} == {"loss": 2.0, "accuracy_top1": 25.0}
    assert meter.take() == {}


def test_a_window_is_empty_after_reading() -> None:
    window = WindowMeter()
    window.add({"loss": torch.tensor(1.0)})
    window.add({"loss": torch.tensor(2.0)})
    assert window.read() == {"loss": 1.5}
    assert window.read() == {}
