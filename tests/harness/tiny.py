"""A configuration small enough to be trained in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from up.build.experiment import load_experiment
from up.tasks.experiment import Experiment
from up.types import Record

CLASSES = ("red", "green", "blue")
SIDE = 32


def write_images(folder: Path) -> None:
    """Fill ``folder`` with train.txt, val.txt and their images."""
    draw = np.random.default_rng(0)
    for name, number in (("train", 46), ("val", 13)):
        lines = []
        for index in range(number):
            label = index % len(CLASSES)
            pixels = draw.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[..., label] += 100
            file = f"{name} {index}.png"
            Image.fromarray(pixels).save(folder / file)
            lines.append(f"{file} {label}\n")
        (folder / f"{name}.txt").write_text("".join(lines))


def transforms(*first: dict[str, Any]) -> list[dict[str, Any]]:
    return [*first, {"type": "to_tensor"}, {"type": "normalize", "kwargs": {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}}]


def source(images: Path, name: str, *first: dict[str, Any], batch_size: int, sampler: str) -> dict[str, Any]:
    return {
        "dataset": {
            "type": "cls",
            "kwargs": {
                "meta_file": str(images / f"{name}.txt"),
                "image_reader": {"type": "fs_pillow", "kwargs": {"image_dir": str(images)}},
                "transformer": transforms(*first),
                "class_names": list(CLASSES),
            },
        },
        "batch_sampler": {"type": "base", "kwargs": {"sampler": {"type": sampler}, "batch_size": batch_size}},
        "dataloader": {"type": "cls_base", "kwargs": {"num_workers": 0}},
    }


def tiny_config(images: Path, run: Path) -> dict[str, Any]:
    """A whole configuration for the ``images`` of ``conftest``, which leaves its run in ``run``."""
    crop = {"type": "torch_random_resized_crop", "kwargs": {"size": 32, "scale": [0.5, 1.0]}}
    flip = {"type": "torch_random_horizontal_flip"}
    resize = {"type": "torch_resize", "kwargs": {"size": [32, 32]}}
    small = {"block": "basic", "layers": [1, 1, 1, 1], "stem": "small", "width": 8}
    return {
        "runtime": {"task_names": "cls", "random_seed": 7, "device": "cpu"},
        "dataset": {
            "train": source(images, "train", crop, flip, batch_size=8, sampler="dist"),
            "test": source(images, "val", resize, batch_size=5, sampler="dist_test"),
        },
        "trainer": {
            "max_epoch": 2,
            "optimizer": {"type": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005}},
            "lr_scheduler": {
                "type": "CosineAnnealingLR",
                "warmup_iter": 2,
                "warmup_type": "linear",
                "warmup_ratio": 0.2,
                "warmup_register_type": "no_scale_lr",
                "kwargs": {"T_max": 2},
            },
            "log_interval": 1,
        },
        "saver": {"save_dir": str(run)},
        "net": [
            {"name": "backbone", "type": "resnet_custom", "kwargs": small},
            {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 3}},
            {"name": "post_process", "type": "base_cls_postprocess", "kwargs": {"cls_loss": {"type": "ce"}}},
        ],
    }


def load_record(record: Record, path: Path) -> Experiment:
    """The experiment of a configuration that is written to ``path``."""
    path.write_text(yaml.safe_dump(record))
    return load_experiment(path)
