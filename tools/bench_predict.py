"""How much of what the machine can do does ``predict --bundle`` reach?

    python tools/bench_predict.py [--bundle FILE.tar] [--images FOLDER] [--batch-size 32] [--threads N] [--rounds 3]

Measures in turn, several times in one process: the same session on ready tensors, the bare loading of the same files
(decode, resize, crop, normalise) in the same number of threads, and predict, which does both. The bare loop is the sum of
the first two; predict overlaps them. Without --bundle a ResNet-18 for 224 x 224 pixels with drawn weights is exported,
without --images 256 JPEG files of 500 x 375 pixels are drawn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from up.deploy.bundle_predictor import BundlePredictor
from up.deploy.images import find_images
from up.deploy.preprocess import Preprocessing

DRAWN = 256
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", nargs="*", default=[])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = find_images(arguments.images) or draw_photos(Path(folder))
        bundle = arguments.bundle or export_resnet18(Path(folder), paths)
        predictor = BundlePredictor.open(bundle, batch_size=arguments.batch_size)
        seconds = measure(predictor, paths, arguments.threads, arguments.rounds)
    for name, taken in seconds.items():
        print(f"{name:<34}{taken:8.2f} s {len(paths) / taken:9.1f} images/s")
    bare = seconds["session on ready tensors"] + seconds["bare loading"]
    print(f"predict reaches {bare / seconds['predict']:.2f} of the bare loop ({len(paths) / bare:.1f} images/s); 0.90 is due")


def measure(predictor: BundlePredictor, paths: list[Path], threads: int, rounds: int) -> dict[str, float]:
    """The median seconds of each of the three, measured in turn."""
    prepare = Preprocessing(predictor.package.manifest.preprocess, predictor.package.input_size)
    ready = np.stack([prepare(path) for path in paths])
    size = predictor.batch_size

    def session() -> None:
        for start in range(0, len(ready), size):
            predictor.session(ready[start : start + size])

    def loading() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(prepare, paths):
                pass

    def predict() -> None:
        for _ in predictor.predict(paths, threads=threads):
            pass

    works: dict[str, Callable[[], None]] = {"session on ready tensors": session, "bare loading": loading, "predict": predict}
    predict()  # the first round also allocates
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(taken) for name, taken in times.items()}


def draw_photos(folder: Path) -> list[Path]:
    """JPEG files with as much detail as photographs have: a few hundred bytes for a thousand pixels."""
    draw = np.random.default_rng(SEED)
    paths = []
    for number in range(DRAWN):
        coarse = Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        paths.append(folder / f"{number:03}.jpg")
        coarse.save(paths[-1], quality=90)
    return paths


def export_resnet18(folder: Path, paths: list[Path]) -> Path:
    """A package of an untrained network, proved on the drawn photos."""
    import torch

    from up.__main__ import main as command
    from up.assembly.network import build_net
    from up.experiment import load_experiment

    config: dict[str, Any] = {
        "dataset": {
            "test": {
                "dataset": {
                    "type": "cls",
                    "kwargs": {
                        "meta_file": "none",
                        "image_reader": {"type": "fs_pillow"},
                        "transformer": [
                            {"type": "torch_resize", "kwargs": {"size": 256}},
                            {"type": "torch_center_crop", "kwargs": {"size": 224}},
                            {"type": "to_tensor"},
                            {"type": "normalize", "kwargs": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
                        ],
                    },
                },
                "batch_sampler": {"type": "base", "kwargs": {"batch_size": 32}},
            }
        },
        "saver": {"save_dir": str(folder / "run")},
        "net": [
            {"name": "backbone", "type": "resnet18"},
            {"name": "head", "type": "base_cls_head", "kwargs": {"num_classes": 1000}},
            {"name": "post_process", "type": "base_cls_postprocess", "kwargs": {"cls_loss": {"type": "ce"}}},
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    torch.save({"model": build_net(load_experiment(path), {}).state_dict()}, folder / "ckpt.pth")
    words = ["--ckpt", str(folder / "ckpt.pth"), "--save-to", str(folder), "--images", *map(str, paths[:8])]
    if command(["to_kestrel", *words, "--config", str(path)]):
        raise SystemExit("the network could not be exported")
    return folder / "model_1.0.0.tar"


if __name__ == "__main__":
    main()
