"""Training on many ranks is the training on one: the same images, the same weights, exact resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.ranks import Cluster
from tests.integration.recording import steps_of
from tests.integration.states import assert_same, checkpoint

Config = dict[str, Any]
Make = Callable[[], Cluster]


def without_batch_norm(config: Config) -> None:
    config["net"][0]["kwargs"]["normalize"] = {"type": "gn", "kwargs": {"num_groups": 4}}


def recording(config: Config, folder: Path) -> str:
    config["runtime"]["plugins"] = ["tests.integration.recording"]
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "record", "kwargs": {"folder": str(folder)}}
    return "dataset.train.dataloader.kwargs.batch_fn.kwargs.folder"


def everything_on(config: Config) -> None:
    """Mixing, averaging, accumulation, bf16, dropout, erasing, a log window of several updates: all that could differ."""
    config["dataset"]["train"]["dataloader"]["kwargs"] |= {"batch_fn": {"type": "batch_mixup"}, "num_workers": 2}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].append({"type": "torch_randerase"})
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    config["runtime"]["amp"] = "bf16"
    config["trainer"] |= {"accumulate": 2, "clip_norm": 1.0, "max_epoch": 3, "log_interval": 4}
    config["net"][0]["kwargs"]["drop_path_rate"] = 0.2
    config["net"][1]["kwargs"]["dropout"] = 0.3


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_one_two_and_four_ranks_are_one_training(config: Config, cluster: Make, tmp_path: Path) -> None:
    """The short last update of each epoch included, whose 6 images 4 ranks cannot share equally."""
    without_batch_norm(config)
    key = recording(config, tmp_path / "1")
    config["trainer"]["max_iter"] = 20
    runs = cluster()
    for world in (1, 2, 4):
        runs.run(f"{key}={tmp_path / str(world)}", f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    steps = [steps_of(tmp_path / str(world)) for world in (1, 2, 4)]
    assert len(steps[0]) == 20
    assert steps[0] == steps[1] == steps[2]
    alone, two, four = (checkpoint(tmp_path / f"run{world}") for world in (1, 2, 4))
    assert alone["step"] == 20
    assert_close(two["model"], alone["model"], 1e-5)
    assert_close(four["model"], alone["model"], 1e-5)
    assert two["metrics"] == alone["metrics"] == four["metrics"]


@pytest.mark.parametrize("sampler", ["repeated_aug", "class_balance", "repeat_factor"])
def test_samplers_give_all_ranks_the_same_updates(config: Config, cluster: Make, tmp_path: Path, sampler: str) -> None:
    key = recording(config, tmp_path / "1")
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["sampler"] = {"type": sampler}
    config["trainer"] |= {"max_iter": 8, "is_eval": False}
    runs = cluster()
    for world in (1, 2):
        runs.run(f"{key}={tmp_path / str(world)}", f"saver.save_dir={tmp_path / f'run{world}'}", codes=[0] * world)
    assert steps_of(tmp_path / "1") == steps_of(tmp_path / "2")


def test_stopped_at_every_step_equals_unbroken(config: Config, cluster: Make, tmp_path: Path) -> None:
    """One run saves after each of the 9 steps of 3 epochs. Another is stopped after each, and goes on from there."""
    everything_on(config)
    config["dataset"]["train"]["dataset"]["kwargs"]["fraction"] = 0.5  # 23 images, 3 steps an epoch
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 9, "test_freq": 3, "save_freq": 100, "keep_last": 30}
    runs = cluster()
    half = "dataset.train.batch_sampler.kwargs.batch_size=2"
    runs.run(half, "trainer.save_freq=1")
    broken = tmp_path / "broken"
    for step in range(1, 9):
        runs.run(
            half,
            f"saver.save_dir={broken}",
            "saver.auto_resume=true",
            codes=(75, 75),
            fault=f"rank={step % 2},step={step},action=term",
        )
    runs.run(half, f"saver.save_dir={broken}", "saver.auto_resume=true")
    for step in range(1, 10):
        name = f"ckpt_s{step}.pth" if step % 3 else f"ckpt_e{step // 3}.pth"
        whole, stopped = checkpoint(tmp_path / "run", name), checkpoint(broken, name)
        assert whole["step"] == stopped["step"] == step
        for part in ("model", "optimizer", "ema", "schedule", "precision", "clip", "best", "metrics", "hooks"):
            assert_same(whole[part], stopped[part], f"step {step}: {part}")
    assert lines_of(tmp_path / "run") == lines_of(broken)


def lines_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
