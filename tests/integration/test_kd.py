"""Distillation, through the command line: a teacher is trained first, then students with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.integration.states import assert_same, checkpoint
from tests.integration.tiny import CLASSES, tiny_config
from up.__main__ import main

Config = dict[str, Any]
Write = Callable[[Config], str]
UPDATES = 6  # an epoch of 46 images in batches of 8


def teacher_net(width: int = 12, classes: int = 3) -> list[Config]:
    wide = {"block": "basic", "layers": [1, 1, 1, 1], "stem": "small", "width": width}
    return [
        {"name": "backbone", "type": "resnet_custom", "kwargs": wide},
        {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": classes}},
    ]


@pytest.fixture(scope="session")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a teacher of ``teacher_net``, which knows its colours."""
    folder = tmp_path_factory.mktemp("teacher")
    config = tiny_config(images, folder / "run")
    config["net"] = [*teacher_net(), config["net"][-1]]
    config["trainer"]["max_epoch"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(folder / "config.yaml")]) == 0
    return folder / "run" / "ckpt_best.pth"


@pytest.fixture
def kd(config: Config, teacher: Path) -> Config:
    """``config`` with the teacher: logits, and the last feature through an adapter."""
    config["runtime"]["runner"] = {"type": "kd"}
    config["teacher"] = teacher_net()
    config["mimic"] = {
        "mimic_as_jobs": True,
        "mimic_job0": {
            "loss_weight": 2.0,
            "warm_up_iters": 3,
            "cfgs": {"loss": {"type": "kd_loss", "kwargs": {"T": 2.0}}},
            "student": {"mimic_name": ["head.classifier"]},
            "teacher": {"mimic_name": ["head.classifier"], "teacher_weight": str(teacher)},
        },
        "mimic_job1": {
            "cfgs": {"loss": {"type": "l2_loss"}},
            "student": {"mimic_name": "backbone.layer4", "adapter": "conv1x1"},
            "teacher": {"mimic_name": "backbone.layer4"},
        },
    }
    return config


def train(path: str, *opts: str) -> int:
    return main(["train", "--config", path, "--opts", *opts])


def records(run: Path, phase: str) -> list[Config]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["phase"] == phase]


def everything_on(config: Config) -> None:
    """Mixing, averaging, accumulation, bf16, dropout and erasing: all that could make a resumed run differ."""
    config["dataset"]["train"]["dataloader"]["kwargs"]["batch_fn"] = {"type": "batch_cutmixup"}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].append({"type": "torch_randerase"})
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    config["runtime"]["amp"] = "bf16"
    config["trainer"] |= {"accumulate": 2, "clip_norm": 1.0, "eval_interval": 2}
    config["net"][0]["kwargs"]["drop_path_rate"] = 0.2
    config["net"][1]["kwargs"]["dropout"] = 0.3


def test_log_shows_the_task_loss_and_every_mimic_loss(kd: Config, write: Write, tmp_path: Path) -> None:
    assert train(write(kd)) == 0
    logged = records(tmp_path / "run", "train")
    assert len(logged) == 2 * UPDATES
    for record in logged:
        parts = record["task_loss"] + record["mimic_job0_loss"] + record["mimic_job1_loss"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
    assert logged[0]["mimic_job0_loss"] == 0  # warming up
    assert logged[3]["mimic_job0_loss"] > 0
    said = (tmp_path / "run" / "train.log").read_text()
    assert "teacher: top-1 100.00 % of 13 validation images" in said
    assert "mimic adapters" in said


def test_the_teacher_is_nowhere_but_in_the_runner(kd: Config, write: Write, tmp_path: Path, config: Config) -> None:
    kd["ema"] = {"enable": True, "kwargs": {"decay": 0.9}}
    assert train(write(kd), "trainer.max_iter=2") == 0
    state = checkpoint(tmp_path / "run")
    student = {"backbone", "head"}
    assert {name.partition(".")[0] for name in state["model"]} == student
    assert {name.partition(".")[0] for name in state["ema"]} == student
    assert list(state["runner"]) == ["mimic_job1_teacher_0.weight"]
    assert state["runner"]["mimic_job1_teacher_0.weight"].shape == (96, 64, 1, 1)
    trained = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    own = [tensor for name, tensor in state["model"].items() if "running" not in name and "num_batches" not in name]
    assert trained == len(own) + 1
    # the student alone is what is evaluated and served
    assert main(["eval", "--config", str(tmp_path / "config.yaml")]) == 0


@pytest.mark.parametrize("stop_after", [1, 4])
def test_resumed_is_equal_to_unbroken(kd: Config, write: Write, tmp_path: Path, stop_after: int) -> None:
    everything_on(kd)
    path = write(kd)
    other = f"saver.save_dir={tmp_path / 'broken'}"
    assert train(path) == 0
    assert train(path, other, f"trainer.max_iter={stop_after}") == 0
    assert train(path, other, "saver.auto_resume=true") == 0
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "broken")
    assert whole["step"] == 6
    for part in ("model", "optimizer", "ema", "schedule", "runner", "metrics"):
        assert_same(whole[part], resumed[part], part)
    last = records(tmp_path / "run", "train")[-1]
    assert records(tmp_path / "broken", "train")[-1] == last
    assert last["dominant_top1"] >= 0  # the labels were mixed


def test_a_mimic_loss_of_no_weight_trains_the_same_student(kd: Config, write: Write, tmp_path: Path) -> None:
    """Neither images nor random numbers depend on the teacher."""
    everything_on(kd)
    kd["mimic"]["mimic_job0"]["loss_weight"] = kd["mimic"]["mimic_job1"]["loss_weight"] = 0.0
    kd["trainer"] |= {"clip_norm": None}
    path = write(kd)
    assert train(path) == 0
    assert train(path, "runtime.runner.type=base", f"saver.save_dir={tmp_path / 'plain'}") == 0
    ours, theirs = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "plain")
    for part in ("model", "ema", "metrics"):
        assert_same(ours[part], theirs[part], part)
    assert "mimic: has no effect" in (tmp_path / "plain" / "train.log").read_text()


def test_a_warm_cache_trains_the_same_student_without_the_teacher(kd: Config, write: Write, tmp_path: Path) -> None:
    del kd["mimic"]["mimic_job1"]
    everything_on(kd)
    kd["mimic"]["cache"] = {"dir": str(tmp_path / "cache")}
    path = write(kd)
    assert train(path) == 0
    files = sorted((tmp_path / "cache").rglob("*.rows"))
    assert sum(file.stat().st_size for file in files) == 2 * 46 * 3 * 2  # epochs, images, classes, bytes
    said = (tmp_path / "run" / "train.log").read_text()
    assert "teacher: cache in " in said
    assert "828 bytes an epoch (46 rows of 18 bytes), 1.66 kB for 2 epochs; 0 bytes are there" in said

    assert train(path, f"saver.save_dir={tmp_path / 'warm'}") == 0
    assert sorted((tmp_path / "cache").rglob("*.rows")) == files
    cold, warm = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "warm")
    for part in ("model", "ema", "optimizer", "metrics"):
        assert_same(cold[part], warm[part], part)


def refused(capfd: pytest.CaptureFixture[str], path: str, *opts: str, command: str = "train") -> str:
    before = sorted(Path(path).parent.iterdir())
    capfd.readouterr()
    assert main([command, "--config", path, "--opts", *opts]) == 2
    assert sorted(Path(path).parent.iterdir()) == before, "something was created"
    (line,) = capfd.readouterr().err.splitlines()
    return line.replace(str(Path(path).parent), "")
