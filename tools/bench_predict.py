"""How much of what the machine can do does ``predict --bundle`` reach?

    python tools/bench_predict.py [--bundle FILE.tar] [--images FOLDER] [--batch-size 32] [--threads N] [--rounds 5]

Measures in turn, several times in one process: the same session on ready tensors, the bare loading of the same files
(decode, resize, crop, normalise) in the same number of threads, and predict, which does both. The bare loop is the sum of
the first two; predict overlaps them. The share is the median of the rounds, of the clock and of the processors' time, which
other work on the machine does not disturb. Without --bundle a ResNet-18 for 224 x 224 pixels with drawn weights is exported,
without --images 128 JPEG files of 500 x 375 pixels are drawn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from up.bundle.answers import Floats
from up.bundle.images import find_images
from up.bundle.package import open_package
from up.bundle.predictor import Predictor, package_predictor
from up.bundle.preprocess import Preprocessing

DRAWN = 128
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", nargs="*", default=[])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = find_images(arguments.images) or draw_photos(Path(folder))
        bundle = arguments.bundle or export_resnet18(Path(folder), paths)
        predictor = package_predictor(open_package(bundle), batch_size=arguments.batch_size)
        rounds = [measure(predictor, paths, arguments.threads) for _ in range(arguments.rounds)]
    for name in rounds[0]:
        taken = statistics.median(each[name].clock for each in rounds)
        print(f"{name:<34}{taken:8.2f} s {len(paths) / taken:9.1f} images/s")
    for kind in ("clock", "processor"):
        shares = [share(each, kind) for each in rounds]
        print(
            f"predict reaches {statistics.median(shares):.2f} of the bare loop by the {kind} "
            f"({min(shares):.2f} to {max(shares):.2f} in {len(shares)} rounds); 0.90 is due"
        )


@dataclass(frozen=True)
class Seconds:
    """What a piece of work took."""

    clock: float
    processor: float  # of all threads


def share(found: dict[str, Seconds], kind: str) -> float:
    """What the bare loop would have taken, by what predict took."""
    session, loading, predict = (getattr(taken, kind) for taken in found.values())
    return float((session + loading) / predict)


def measure(predictor: Predictor[Floats], paths: list[Path], threads: int) -> dict[str, Seconds]:
    """The session on ready tensors, bare loading, and predict, once each, one after the other."""
    prepare = Preprocessing(predictor.package.manifest.preprocess, predictor.package.manifest.input_size)
    ready = np.stack([prepare(path) for path in paths])
    size = predictor.batch_size
    predictor.session(ready[:size])  # the first run also allocates

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
    found = {}
    for name, work in works.items():
        clock, processor = time.perf_counter(), time.process_time()
        work()
        found[name] = Seconds(time.perf_counter() - clock, time.process_time() - processor)
    return found


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
    """Export a package of an untrained network, compared with torch on the drawn photos."""
    import torch

    from up.__main__ import main as command
    from up.build.experiment import load_experiment
    from up.build.network import build_net

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
