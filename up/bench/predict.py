"""Rows of the predictions: a package on files, next to its session and the loading of the files, one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target

if TYPE_CHECKING:
    from up.bundle.answers import Floats
    from up.bundle.predictor import Predictor

_BATCH = 32
ROWS = [
    Row(
        "predict.package",
        "`predict --bundle` of resnet18 at 224 on JPEG files of 500 pixels",
        "images/s",
        [
            BenchCell(OURS, f"{__name__}:ours", needs=["onnxruntime"]),
            BenchCell("bare", f"{__name__}:bare", needs=["onnxruntime"], is_peer=True),
        ],
        [Target(0.9, "at least", "bare")],
        "onnxruntime's convolutions. The bare loop loads all files in the same threads and then runs the session on ready arrays; "
        "predict overlaps the two, and both want the same CPUs.",
        [BenchCell("package", f"{__name__}:prepare", needs=["onnxruntime"])],
    )
]


def prepare(settings: Settings) -> None:
    """Export the package, unless it is there."""
    package_of(settings)


def package_of(settings: Settings) -> Path:
    """Return the package; export it where needed."""
    from up import __version__
    from up.bench.images import made, photos

    images = photos(settings, "500")
    name = f"package-{__version__}{'-quick' if settings.quick else ''}"
    return made(settings.folder / name, lambda folder: _export(folder, images, settings.size(224, 32))) / "model_1.0.0.tar"


def _export(folder: Path, images: Path, size: int) -> None:
    """Export a package of a network with drawn weights, compared with torch on the first images."""
    import torch

    from up.__main__ import main as command
    from up.bench.recipes import Recipe
    from up.build.experiment import load_experiment
    from up.build.network import build_net

    path = Recipe(images, "resnet18", size, 8, epochs=1, val=images).write(folder)
    classes = {"num_classes": len([*images.iterdir()])}
    torch.save({"model": build_net(load_experiment(path), classes).state_dict()}, folder / "ckpt.pth")
    words = ["--ckpt", str(folder / "ckpt.pth"), "--save-to", str(folder), "--images", *map(str, files_of(images)[:4])]
    if command(["to_kestrel", *words, "--config", str(path)]):
        raise RuntimeError("the network could not be exported")


def files_of(images: Path) -> list[Path]:
    """Return the image files of a folder."""
    return sorted(images.rglob("*.jpg"))


def _predictor(settings: Settings) -> Predictor[Floats]:
    from up.bundle.package import open_package
    from up.bundle.predictor import package_predictor

    return package_predictor(open_package(package_of(settings)), batch_size=settings.size(_BATCH, 4))


def ours(settings: Settings) -> Reading:
    """Measure predictions of all files, again and again."""
    from up.bench.images import photos
    from up.bench.timing import rate

    predictor, paths = _predictor(settings), files_of(photos(settings, "500"))
    return Reading(rate(settings, lambda _: len([*predictor.predict(paths, threads=settings.threads)]), warm_up=1))


def bare(settings: Settings) -> Reading:
    """Measure the loading of all files in threads, and then the session on ready arrays."""
    import numpy as np

    from up.bench.images import photos
    from up.bench.timing import rate
    from up.bundle.package import open_package
    from up.bundle.preprocess import Preprocessing
    from up.bundle.session import Session

    package, paths = open_package(package_of(settings)), files_of(photos(settings, "500"))
    session, size = Session(package.model, package.label), settings.size(_BATCH, 4)
    prepared = Preprocessing(package.manifest.preprocess, package.manifest.input_size)

    def work(_: int) -> int:
        with ThreadPoolExecutor(settings.threads) as pool:
            ready = np.stack([*pool.map(prepared, paths)])
        for start in range(0, len(ready), size):
            session(ready[start : start + size])
        return len(paths)

    return Reading(rate(settings, work, warm_up=1))
