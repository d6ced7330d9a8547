"""Rows of training a large net from JPEG files on a GPU, next to a loop by hand whose batch is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target
from up.bench.images import CLASSES, many_photos
from up.bench.step import Timed, bare, measured, recipe_of, warm_up

if TYPE_CHECKING:
    from torch import Tensor

_AHEAD = 3  # batches a worker that may be ready before the first step: they are used up before anything is measured


def _rows() -> Iterator[Row]:
    for compiled, share in ((False, 1.0), (True, 0.95)):
        chosen = {"net": "resnet50", "size": 224, "batch": 256, "optimizer": "SGD", "amp": "bf16", "compiled": compiled}
        how = "compiled" if compiled else "eager"
        yield Row(
            f"run.gpu-resnet50-jpegs-{how}",
            f"resnet50 at 224, batch 256, bf16, {how}, from JPEG of 500 pixels through workers, two fewer than CPUs",
            "ms",
            [
                BenchCell(OURS, f"{__name__}:ours", chosen),
                BenchCell("bare in memory", f"{bare.__module__}:{bare.__name__}", chosen, is_peer=True),
                BenchCell("bare on timm's loader", f"{__name__}:of_timm", chosen, is_peer=True),
            ],
            [Target(1 / share, "at most", "bare in memory")],
            "The step of the GPU, as long as the workers read more images than it trains on.",
            [BenchCell("photos", "up.bench.images:prepare_many_photos"), BenchCell("pngs", "up.bench.images:prepare_pngs")],
            device="cuda",
        )


ROWS = [*_rows()]


def ours(settings: Settings, **chosen: object) -> Reading:
    """Measure the loop of ``up train`` on its own loader."""
    workers = _workers(settings)
    recipe = recipe_of(settings, many_photos(settings), **chosen, workers=workers, reader="auto")  # type: ignore[arg-type]
    return measured(settings, recipe, lambda session: Timed(settings, session.loader_from(0), _AHEAD * workers))


def of_timm(settings: Settings, **chosen: object) -> Reading:
    """Measure the loop by hand on timm's loader with its prefetcher, which normalises on the GPU."""
    import torch
    from timm.data import create_dataset, create_loader

    from up.bench.step import loop_by_hand
    from up.bench.timing import milliseconds_of

    images, workers = many_photos(settings), _workers(settings)
    recipe = recipe_of(settings, images, **chosen)  # type: ignore[arg-type]
    loader = create_loader(
        create_dataset("", root=str(images)),
        (3, recipe.size, recipe.size),
        recipe.batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=workers,
        device=torch.device(settings.device),
    )
    train, batches = loop_by_hand(settings, recipe, classes=CLASSES), _without_end(loader)
    taken = milliseconds_of(settings, lambda: train(*next(batches)), warm_up=warm_up(settings) + _AHEAD * workers)
    return Reading(taken, {"images/s": 1000 * recipe.batch / taken})


def _without_end(loader: object) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader  # type: ignore[misc]


def _workers(settings: Settings) -> int:
    return max(1, settings.threads - 2)  # one CPU for the loop, and one for the backward pass
