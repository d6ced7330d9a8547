"""YAML files of the benchmark's own runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from up.types import Record

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Recipe(NamedTuple):
    """A training of ``net`` on the class folders ``images``, with images of ``size`` pixels."""

    images: Path
    net: str
    size: int
    batch: int
    device: str = "cpu"
    optimizer: str = "SGD"
    amp: str | None = None
    compiled: bool = False
    workers: int = 0
    epochs: int | None = None
    """None: a run without an end, which is not evaluated."""
    val: Path | None = None
    reader: str = "fs_pillow"

    def write(self, folder: Path) -> Path:
        """Write the YAML file to ``folder``, where its run will be as well, and return its path."""
        path = folder / "bench.yaml"
        path.write_text(yaml.safe_dump(self.as_record(folder / "run")), encoding="utf-8")
        return path

    def as_record(self, run: Path) -> Record:
        """Return the configuration, whose run folder is ``run``."""
        optimizer = {"lr": 0.001, **({"momentum": 0.9} if self.optimizer == "SGD" else {})}
        endless = {"max_iter": 10**9, "is_eval": False, "save_freq": 10**9}
        runtime = {"device": self.device, "compile": self.compiled, "plugins": ["up.bench.parts"]}
        views = ["torch_random_resized_crop", "torch_random_horizontal_flip"]
        return {
            "runtime": {**runtime, **({"amp": self.amp} if self.amp else {}), **({} if self.epochs else {"iter_base": True})},
            "dataset": {
                "train": self.source(self.images, views, drop_last=self.epochs is not None),  # as timm's loader does
                **({"test": self.source(self.val, ["torch_resize"])} if self.val is not None else {}),
            },
            "trainer": {
                **({"max_epoch": self.epochs} if self.epochs else endless),
                "optimizer": {"type": self.optimizer, "kwargs": optimizer},
                "lr_scheduler": {"type": "polylr", "warmup_register_type": "no_scale_lr"},
            },
            "saver": {"save_dir": str(run)},
            "net": [
                {"name": "backbone", **self._backbone()},
                {"name": "head", "type": "base_cls_head"},
                {"name": "post_process", "type": "base_cls_postprocess", "kwargs": {"cls_loss": {"type": "ce"}}},
            ],
        }

    def _backbone(self) -> Record:
        if self.net == "linear":
            return {"type": "bench_flat", "kwargs": {"size": self.size}}
        return {"type": "timm", "kwargs": {"model_name": self.net}}

    def source(self, images: Path | None, first: list[str], **chosen: object) -> Record:
        """Return a source of the data: the class folders ``images`` with the transforms ``first``, as floats.

        ``chosen``: further arguments of the sampler.
        """
        sizes = {"torch_random_horizontal_flip": {}, "torch_resize": {"size": [self.size, self.size]}}
        transformer = [
            *({"type": name, "kwargs": sizes.get(name, {"size": self.size})} for name in first),
            {"type": "to_tensor"},
            {"type": "normalize", "kwargs": {"mean": list(MEAN), "std": list(STD)}},
        ]
        kwargs = {
            "meta_file": str(images),
            "meta_type": "image_folder",
            "image_reader": {"type": self.reader},
            "transformer": transformer,
        }
        return {
            "dataset": {"type": "cls", "kwargs": kwargs},
            "batch_sampler": {"type": "base", "kwargs": {"batch_size": self.batch, **chosen}},
            "dataloader": {"type": "cls_base", "kwargs": {"num_workers": self.workers}},
        }
