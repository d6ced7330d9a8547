"""Rows of the step: the whole loop on a batch in memory, next to a loop by hand that does the same arithmetic."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target
from up.bench.images import pngs
from up.types import Kwargs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from up.bench.recipes import Recipe
    from up.data.records import Batch
    from up.data.sampler import Cut
    from up.engine.session import TrainingSession
    from up.engine.step import StepLoader

_PNGS = [BenchCell("pngs", "up.bench.images:prepare_pngs")]
_WARM_UP = {"cpu": 10, "cuda": 25}  # steps: allocators, algorithms and compilers; on a GPU also the first line of the log
_IN_MEMORY = "The same convolutions and the same optimizer; ours votes, checks that all is finite, weighs and logs beside them."


def _of(net: str, size: int, batch: int, **chosen: object) -> Kwargs:
    return {"net": net, "size": size, "batch": batch, **chosen}


def _pair(name: str, title: str, chosen: Kwargs, targets: list[Target], bound: str, device: Literal["cpu", "cuda"] | None) -> Row:
    cells = [BenchCell(OURS, f"{__name__}:ours", chosen), BenchCell("bare", f"{__name__}:bare", chosen, is_peer=True)]
    return Row(name, title, "ms", cells, targets, bound, _PNGS, device=device)


def _compiled_row() -> Row:
    chosen = _of("resnet18", 64, 64)
    compiled = {**chosen, "compiled": True}
    cells = [
        BenchCell(OURS, f"{__name__}:ours", compiled),
        BenchCell("eager", f"{__name__}:ours", chosen),
        BenchCell("bare", f"{__name__}:bare", compiled, is_peer=True),
    ]
    targets = [Target(1.0, "at most", "eager"), Target(1 / 0.97, "at most", "bare")]
    bound = "oneDNN's convolutions, which the compiler leaves as they are: it can fuse only what is between them."
    title = "Compiled step of resnet18, 64 x 64, batch 64, fp32, data in memory"
    return Row("step.compiled-resnet18", title, "ms", cells, targets, bound, _PNGS, device="cpu")


def _gpu_rows() -> Iterator[Row]:
    nets = {"resnet50": _of("resnet50", 224, 256), "resnet18": _of("resnet18", 64, 128)}
    for net, optimizer in (("resnet50", "SGD"), ("resnet50", "LAMB"), ("resnet18", "SGD")):
        for compiled in (False, True):
            chosen = {**nets[net], "optimizer": optimizer, "amp": "bf16", "compiled": compiled}
            how = "compiled" if compiled else "eager"
            title = f"{net} at {chosen['size']}, batch {chosen['batch']}, {optimizer}, bf16, {how}, data in memory"
            bound = "The GPU's memory: normalisation and activations move more bytes than the tensor cores need time for."
            target = [Target(1 / 0.98, "at most", "bare")]
            yield _pair(f"step.gpu-{net}-{optimizer.lower()}-{how}", title, chosen, target, bound, "cuda")


ROWS = [
    _pair(
        "step.resnet18",
        "Step of resnet18, 64 x 64, batch 64, SGD, fp32, data in memory",
        _of("resnet18", 64, 64),
        [Target(1.02, "at most", "bare")],
        _IN_MEMORY,
        "cpu",
    ),
    _pair(
        "step.mobilenetv3",
        "Step of mobilenetv3_large_100, 224 x 224, batch 32, SGD, fp32, data in memory",
        _of("mobilenetv3_large_100", 224, 32),
        [Target(0.95, "at most", "bare")],
        "The CPU's memory: few operations for each byte. Ours reuses that of freed tensors; glibc returns it each time.",
        "cpu",
    ),
    _pair(
        "step.fixed",
        "Fixed cost of a step: one linear layer on 8 x 8 pixels, batch 2",
        _of("linear", 8, 2),
        [Target(0.4, "at most", "bare", "difference")],
        "Python: the calls of the loop, its vote, its meter and its hooks.",
        "cpu",
    ),
    _compiled_row(),
    *_gpu_rows(),
]


class Enough(BaseException):
    """Ends a loop that has been measured long enough; no handler of errors may catch it."""


class InMemory:
    """A loader that gives the same batch for ``steps`` steps, without end by default."""

    def __init__(self, batches: list[Batch], cut: Cut, steps: int | None = None) -> None:
        self._batches, self._cut, self._steps = batches, cut, steps

    def cut(self, step: int) -> Cut:
        """Return the same shares for every step."""
        return self._cut

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return ((step, self._batches) for step in (count() if self._steps is None else range(self._steps)))


class Timed:
    """The loader of a run, which takes the times between its steps after a warm-up, and ends the run by ``Enough``."""

    def __init__(self, settings: Settings, loader: StepLoader, more: int = 0) -> None:
        """``more``: further steps of the warm-up."""
        self._settings, self._loader, self._warm_up = settings, loader, settings.size(warm_up(settings) + more, 1)
        self.milliseconds = 0.0

    def cut(self, step: int) -> Cut:
        """Return the shares of the loader."""
        return self._loader.cut(step)

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        from up.bench.timing import clock_of, wait

        clock, steps = clock_of(self._settings), iter(self._loader)
        yield from islice(steps, self._warm_up)
        wait(self._settings)
        begun, times = clock(), list[float]()
        while len(times) < 3 or clock() - begun < self._settings.seconds:
            before = clock()
            yield next(steps)
            times.append(clock() - before)
        wait(self._settings)
        mean = (clock() - begun) / len(times)
        self.milliseconds = 1000 * (mean if self._settings.device == "cuda" else statistics.median(times))
        raise Enough


def recipe_of(settings: Settings, images: Path, net: str, size: int, batch: int, **chosen: object) -> Recipe:
    """Return the recipe of a row; a tiny one for a quick run."""
    from up.bench.recipes import Recipe

    few = {"net": "resnet18" if net == "resnet50" else net, "size": min(size, 32), "batch": min(batch, 2)} if settings.quick else {}
    return Recipe(images, **{"net": net, "size": size, "batch": batch, "device": settings.device, **chosen, **few})  # type: ignore[arg-type]


def warm_up(settings: Settings) -> int:
    """Return the steps before the measurement.

    On a GPU the first line of the log is one of them: with it images of the first batch are written, once a run, while the GPU
    waits. A median over steps leaves it out anyway.
    """
    return _WARM_UP[settings.device]


def ours(settings: Settings, **chosen: object) -> Reading:
    """Measure the loop of ``up train`` with all it does between steps: no step of it is left out."""
    recipe = recipe_of(settings, pngs(settings, "train"), **chosen)  # type: ignore[arg-type]
    loader = InMemory([batch_of(recipe)], cut_of(recipe))
    return measured(settings, recipe, lambda session: Timed(settings, loader))


def measured(settings: Settings, recipe: Recipe, timed: Callable[[TrainingSession], Timed]) -> Reading:
    """Train ``recipe`` on the loader that ``timed`` makes for its session, and return the time of a step."""
    from up.engine.loop import train

    with tempfile.TemporaryDirectory() as folder:
        session = session_of(recipe, Path(folder))
        loader = timed(session)
        try:
            train(replace(session, loader_from=lambda step: loader))
        except Enough:
            return Reading(loader.milliseconds, {"images/s": 1000 * recipe.batch / loader.milliseconds})
    raise AssertionError("the loop ended before its loader")


def session_of(recipe: Recipe, folder: Path) -> TrainingSession:
    """Build the run of a recipe in ``folder``, ready for its first step."""
    from up.build.build import build_run
    from up.build.experiment import load_experiment
    from up.command_line import CommandLine
    from up.distributed.signals import StopRequest

    path = recipe.write(folder)
    return build_run(load_experiment(path), StopRequest(), CommandLine.typed(["train", str(path)]))


def batch_of(recipe: Recipe) -> Batch:
    """Read a batch of uint8 images (B, 3, H, W), on the device of the recipe."""
    import torch

    from up.bench.loader import dataset_of
    from up.data.collate import collate, to_device
    from up.data.records import SampleKey

    transforms = [{"type": "torch_random_resized_crop", "kwargs": {"size": recipe.size}}]
    data = dataset_of(recipe.images, transforms)
    batch = collate([data[SampleKey(0, index % len(data))] for index in range(recipe.batch)])
    return to_device(batch, torch.device(recipe.device))


def cut_of(recipe: Recipe) -> Cut:
    """Return the shares of a step with one micro-batch on one rank."""
    from up.data.sampler import Cut, Share

    return Cut([Share(1.0, 1.0 / recipe.batch)], recipe.batch)


def bare(settings: Settings, **chosen: object) -> Reading:
    """Measure a loop by hand: the batch's bytes to normalised floats, forward, backward and step; nothing else."""
    import torch

    from up.bench.images import PNG_CLASSES
    from up.bench.recipes import MEAN, STD
    from up.bench.timing import milliseconds_of

    recipe = recipe_of(settings, pngs(settings, "train"), **chosen)  # type: ignore[arg-type]
    batch, device = batch_of(recipe), torch.device(settings.device)
    image, label = batch["image"], batch["gt"].to(device)
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (MEAN, STD))
    train = loop_by_hand(settings, recipe, PNG_CLASSES)

    def step() -> None:
        train(image.to(device, torch.float32, memory_format=torch.channels_last).div_(255).sub_(mean).div_(std), label)

    taken = milliseconds_of(settings, step, warm_up=warm_up(settings))
    return Reading(taken, {"images/s": 1000 * recipe.batch / taken})


def loop_by_hand(settings: Settings, recipe: Recipe, classes: int) -> Callable[[Tensor, Tensor], None]:
    """Return a step on normalised images (B, 3, H, W) and labels (B): forward, backward and optimizer, without this package."""
    import torch
    from torch.nn import functional as F

    net = net_by_hand(recipe, classes).to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_by_hand(recipe, net)
    net = torch.compile(net) if recipe.compiled else net

    def step(image: Tensor, label: Tensor) -> None:
        with torch.autocast(settings.device, dtype=torch.bfloat16, enabled=recipe.amp == "bf16"):
            loss = F.cross_entropy(net(image.contiguous(memory_format=torch.channels_last)), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def net_by_hand(recipe: Recipe, classes: int) -> nn.Module:
    """Build the net of a recipe without this package."""
    import timm
    from torch import nn

    if recipe.net == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * recipe.size**2, classes))
    made: nn.Module = timm.create_model(recipe.net, num_classes=classes)
    return made


def optimizer_by_hand(recipe: Recipe, net: nn.Module):  # type: ignore[no-untyped-def]
    """Build torch's SGD, or timm's LAMB."""
    import torch
    from timm.optim import Lamb

    if recipe.optimizer == "LAMB":
        return Lamb(net.parameters(), lr=0.001)
    return torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
