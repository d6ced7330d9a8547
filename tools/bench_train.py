"""How fast does ``up train`` train, next to a loop by hand over timm's loader?

    OMP_WAIT_POLICY=PASSIVE python tools/bench_train.py [--net resnet18] [--size 224] [--batch-size 32] [--workers 2]
                                                        [--steps 30] [--rounds 3] [--reader fs_pillow|fs_turbo] [--threads N]

Both train the same net of timm with SGD on the same drawn JPEG files, cropped, mirrored and normalised alike, and take turns in
one process. Ours does all that a run does: it votes, checks that everything is finite, logs. The ratio is the median of the
rounds; 1 is as fast as the loop by hand. With ``--net test_resnet --size 64`` reading the images takes most of it. The setting of
OpenMP is the one that ``up`` gives itself: without it both are slower where loader workers and threads share a few cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.nn import functional as F

from up.build.build import build_run
from up.build.experiment import load_experiment
from up.command_line import CommandLine
from up.distributed.signals import StopRequest
from up.engine.hooks import Hook, StepReport
from up.engine.loop import train

CLASSES, DRAWN = 4, 256
WARM_UP = 5  # steps that are not timed: workers start, allocators learn
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet18", help="a model of timm")
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reader", choices=("fs_pillow", "fs_turbo"), default="fs_pillow")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours, by_hand = [], []
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder) / "images")
        for number in range(arguments.rounds):
            ours.append(rate_of_up(arguments, Path(folder), number))
            by_hand.append(rate_by_hand(arguments, Path(folder) / "images"))
    ratios = [mine / other for mine, other in zip(ours, by_hand, strict=True)]
    shape = f"{arguments.batch_size} x 3 x {arguments.size} x {arguments.size}"
    print(f"{arguments.net}, {shape}, {arguments.workers} workers, {arguments.reader}")
    print(f"  up train                    {statistics.median(ours):8.1f} images/s")
    print(f"  by hand, timm's loader      {statistics.median(by_hand):8.1f} images/s")
    print(f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {arguments.rounds} rounds)")


class Clock(Hook):
    """When each update was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, report: StepReport) -> None:
        self.times.append(time.perf_counter())


def rate(times: list[float], batch_size: int) -> float:
    """Images a second after the warm-up."""
    return batch_size * (len(times) - 1 - WARM_UP) / (times[-1] - times[WARM_UP])


def rate_of_up(arguments: argparse.Namespace, folder: Path, number: int) -> float:
    """The whole of a run but its last save."""
    path = folder / f"{number}.yaml"
    path.write_text(yaml.safe_dump(config_of(arguments, folder, number)))
    clock = Clock()
    logging.getLogger("up").setLevel(logging.ERROR)
    session = build_run(load_experiment(path), StopRequest(), CommandLine.typed(["train", str(path)]))
    session.hooks.hooks.append(clock)
    train(session)
    return rate(clock.times, arguments.batch_size)


def config_of(arguments: argparse.Namespace, folder: Path, number: int) -> dict[str, Any]:
    """What ``rate_by_hand`` does, as a file."""
    transformer = [
        {"type": "torch_random_resized_crop", "kwargs": {"size": arguments.size}},
        {"type": "torch_random_horizontal_flip"},
        {"type": "to_tensor"},
        {"type": "normalize", "kwargs": {"mean": list(MEAN), "std": list(STD)}},
    ]
    dataset = {
        "meta_file": str(folder / "images"),
        "meta_type": "image_folder",
        "image_reader": {"type": arguments.reader},
        "transformer": transformer,
    }
    return {
        "runtime": {"iter_base": True},
        "dataset": {
            "train": {
                "dataset": {"type": "cls", "kwargs": dataset},
                "batch_sampler": {"type": "base", "kwargs": {"batch_size": arguments.batch_size}},
                "dataloader": {"type": "cls_base", "kwargs": {"num_workers": arguments.workers}},
            }
        },
        "trainer": {
            "max_iter": arguments.steps + WARM_UP,
            "is_eval": False,
            "save_freq": 10_000,
            "optimizer": {"type": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9}},
            "lr_scheduler": {"type": "polylr"},
        },
        "saver": {"save_dir": str(folder / f"run{number}")},
        "net": [
            {"name": "backbone", "type": "timm", "kwargs": {"model_name": arguments.net}},
            {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": CLASSES}},
            {"name": "post_process", "type": "base_cls_postprocess", "kwargs": {"cls_loss": {"type": "ce"}}},
        ],
    }


def rate_by_hand(arguments: argparse.Namespace, images: Path) -> float:
    """Forward, backward and step, and nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = create_loader(
        create_dataset("", root=str(images)),
        (3, arguments.size, arguments.size),
        arguments.batch_size,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=arguments.workers,
        device=device,
        persistent_workers=arguments.workers > 0,
    )
    net = timm.create_model(arguments.net, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    times: list[float] = []
    while len(times) < arguments.steps + WARM_UP:
        for image, label in loader:
            loss = F.cross_entropy(net(image.contiguous(memory_format=torch.channels_last)), label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
    return rate(times[: arguments.steps + WARM_UP], arguments.batch_size)


def draw_photos(folder: Path) -> None:
    """JPEG files with as much detail as photographs have, in folders of classes."""
    draw = np.random.default_rng(0)
    for number in range(DRAWN):
        coarse = Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        path = folder / f"class{number % CLASSES}" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.save(path, quality=90)


if __name__ == "__main__":
    main()
