"""A teacher and the student of its distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.data.records import Batch
from up.distill.teachers import Teacher

Config = dict[str, Any]


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
def taught(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each training batch that a teacher runs for; a cache adds the keys, which other batches lack."""
    counted: list[int] = []
    plain = Teacher.__call__

    def counting(self: Teacher, batch: Batch) -> dict[str, Tensor]:
        if "image_keys" in batch:
            counted.append(len(batch["image"]))
        return plain(self, batch)

    monkeypatch.setattr(Teacher, "__call__", counting)
    return counted


@pytest.fixture
def kd(config: Config, teacher: Path) -> Config:
    """``config`` with the teacher: logits, and the last feature through an adapter."""
    config["runtime"]["runner"] = {"type": "kd"}
    config["saver"]["auto_resume"] = False  # a test trains several times in one folder
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
