"""Decide whether a run trains on cached features of its frozen modules, and build the cache (``finetune.features``)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from up.build.data import build_transforms, section_of, train_loader, workers_of
from up.build.finetune import section_of as finetune_of
from up.data.dataset import KeyedDataset
from up.data.loader import TrainLoader
from up.data.records import Batch, Dataset, SampleKey, Transform
from up.data.sampler import TrainBatches
from up.data.transforms.stages import DeviceStage
from up.data.transforms.table import RandomHorizontalFlip, ToTensor
from up.distill.cache import sampled_images
from up.distributed.failures import Vote
from up.distributed.signals import StopRequest
from up.engine.bad_images import BadImageLog
from up.engine.features import FEATURES, Condensing, FeatureCache, FeatureSteps, FixedViews
from up.engine.parallel import unchanged_buffers
from up.engine.precision import Precision
from up.engine.step import Mixing, StepLoader
from up.engine.timetable import Timetable
from up.errors import UserError
from up.models.net import COMPUTED, Net
from up.optim.freezing import Freezing
from up.seed import seed_all
from up.tasks.experiment import Experiment
from up.text import count, size_text, some_of

_KEY = "finetune.features"
_CLOSE = 1e-4  # relative difference of a loss on cached features


class NotCached(Exception):
    """Raised with the reason why features are computed at every step."""


class Features(NamedTuple):
    """The cache of a run, if it has one, and lines for the log that say so, or why there is none."""

    cache: FeatureCache | None = None
    lines: Sequence[str] = ()


class Phase(NamedTuple):
    """The first steps, before ``until``, in which the first ``frozen`` modules of the net do not train."""

    frozen: int
    until: int


def features_of(
    experiment: Experiment,
    data: Dataset,
    net: Net,
    freezing: Freezing,
    times: Timetable,
    *,
    mix: Mixing | None,
    precision: Precision,
) -> Features:
    """Build the cache that ``finetune.features`` asks for, where the run allows one."""
    wanted = finetune_of(experiment).features
    if wanted == "every_step":
        return Features()
    try:
        phase = _phase(experiment, net, freezing, times, mix)
        views, title = _views(experiment, data, wanted == "fixed_view", next(net.parameters()).device)
        cache = _cache(experiment, data, net, phase, views, precision)
        _check(experiment, cache)
    except NotCached as reason:
        return Features(None, [f"{_KEY}: the whole net runs at every step: {reason}"])
    mirrored = " and their mirror images" if len(views.data) > 1 else ""
    epochs = "" if phase.until == times.total else f" of the first {count(phase.until // times.steps_per_epoch, 'epoch')}"
    size = f"{size_text(cache.bytes)} in {experiment.folder / FEATURES}"
    once = f"the frozen modules run once, for {count(len(data), 'image')}{mirrored} in {title} ({size})"
    return Features(cache, [f"{_KEY}: {once}; the steps{epochs} train the head on their output"])


def _phase(experiment: Experiment, net: Net, freezing: Freezing, times: Timetable, mix: Mixing | None) -> Phase:
    """Find the frozen modules at the beginning of the net, and how long they are frozen. Raises ``NotCached``."""
    runtime = experiment.config.runtime
    if runtime.runner.type != "base":
        raise NotCached(f"runtime.runner {runtime.runner.type} needs the images")
    if runtime.parallel == "fsdp":
        raise NotCached("runtime.parallel: fsdp shards all modules")
    if mix is not None:
        raise NotCached("the images of a batch are mixed")
    if freezing.blocks:
        raise NotCached("finetune.unfreeze trains more modules from epoch to epoch")
    names = net.module_names

    def frozen_at(step: int) -> int:
        held = freezing.at(step)
        trains = [any(f"{name}.{each}" not in held for each, _ in net[name].named_parameters()) for name in names]
        without = [next(net[name].parameters(), None) is None for name in names]
        return next((at for at in range(len(names)) if trains[at] or without[at]), len(names))

    frozen = frozen_at(0)
    if not frozen:
        raise NotCached(f"{names[0]} trains from the start (finetune.freeze, finetune.probe)")
    if frozen == len(names) or not isinstance(net[names[frozen]], Condensing):
        kind = "no module" if frozen == len(names) else type(net[names[frozen]]).__name__
        raise NotCached(f"{kind} after the frozen modules takes vectors in place of their features")
    always = freezing.probe_epochs == 0 or frozen_at(times.total) == frozen
    return Phase(frozen, times.total if always else min(times.total, freezing.probe_epochs * times.steps_per_epoch))


def _views(experiment: Experiment, data: Dataset, fixed: bool, device: torch.device) -> tuple[FixedViews, str]:
    """Build the views of the images: of the training transforms, or with ``fixed`` of the evaluation's. Raises ``NotCached``."""
    if not isinstance(data, KeyedDataset):
        raise NotCached(f"{type(data).__name__} has no transforms of its own")
    if fixed and experiment.config.dataset.test is None:
        raise NotCached("there is no dataset.test, whose transforms make the fixed view")
    flips = [each for each in data.transforms if isinstance(each, RandomHorizontalFlip)]
    transforms = list(data.transforms)
    if fixed:
        transforms = build_transforms(experiment, "test")
        at = next((at for at, each in enumerate(transforms) if isinstance(each, ToTensor)), len(transforms))
        transforms[at:at] = flips[:1]
    source = "dataset.test" if fixed else "dataset.train"
    unsteady = [each for each in transforms if not isinstance(each, RandomHorizontalFlip) and not _is_steady(each)]
    if unsteady or len(flips) > 1:
        names = some_of(type(each).__name__ for each in unsteady or flips)
        fix = "" if fixed else f"; {_KEY}: fixed_view trains the head on the view of dataset.test"
        raise NotCached(f"{names} of {source} may transform an image differently each time{fix}")
    p = flips[0].p if flips else 0.0
    mirrored = [RandomHorizontalFlip(p=1.0) if isinstance(each, RandomHorizontalFlip) else each for each in transforms]
    steady = [each for each in transforms if not isinstance(each, RandomHorizontalFlip)]
    each_view: Sequence[Sequence[Transform]] = [steady, mirrored] if 0 < p < 1 else [mirrored if p else steady]
    sets = [data.with_transforms(listed) for listed in each_view]
    with experiment.placing(f"{source}.dataset.kwargs.transformer"):
        stages = experiment.task.stages(sets[0])
    stage = DeviceStage(stages.device, device, channels_last=experiment.config.runtime.channels_last)
    return FixedViews(sets, stage, len(data), p, data.where), f"the view of {source}"


def _is_steady(transform: Transform) -> bool:
    """Check that a transform draws nothing: it can be an operation of a package's preprocessing."""
    of_package: Callable[[], object] = getattr(transform, "export_op", lambda: None)
    return of_package() is not None


def _cache(experiment: Experiment, data: Dataset, net: Net, phase: Phase, views: FixedViews, precision: Precision) -> FeatureCache:
    """Build the cache, its form from the first images. Raises ``NotCached`` for samples that a row cannot hold."""
    config = experiment.config
    assert config.dataset.train is not None
    settings = [config.dataset.train.dataset.kwargs, config.dataset.test and config.dataset.test.dataset.kwargs.get("transformer")]
    view = views.data[-1]
    assert isinstance(view, KeyedDataset)
    cache = FeatureCache(
        net,
        phase.frozen,
        views,
        precision,
        {},
        phase.until,
        config.runtime.random_seed,
        experiment.folder,
        {
            "names and labels": data.fingerprint()[:16],
            "settings": sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
            "images": sampled_images(view),
            "precision": config.runtime.precision,
        },
        experiment.task.collate,
        workers_of(section_of(experiment, "train")),
    )
    batch = _first_batch(experiment, cache)
    others = [name for name, value in batch.items() if not isinstance(value, Tensor) and name not in ("filename", "bad")]
    if others:
        raise NotCached(f"{some_of(others)} of a sample is not a tensor")
    try:
        with _traceless(cache):
            fields = cache.features_of(views.stage(batch))
    except UserError as error:
        raise NotCached(error.problems[0].what) from error
    cache.form.update({name: (value.dtype, tuple(value.shape[1:])) for name, value in fields.items()})
    return cache


def _check(experiment: Experiment, cache: FeatureCache) -> None:
    """Raise ``NotCached`` unless the loss of two images is the same on their features."""
    prepared = cache.views.stage(_first_batch(experiment, cache))
    losses: list[float] = []
    with _traceless(cache), cache.precision.autocast():
        fields = cache.features_of(prepared)
        condensed = {name: value for name, value in prepared.items() if name != "image"} | fields | {COMPUTED: cache.frozen}
        for batch in (prepared, Batch(condensed)):
            seed_all(cache.seed)
            try:
                losses.append(float(experiment.task.loss(cache.net, batch).loss))
            except (UserError, KeyError) as error:
                raise NotCached(f"the net computes no loss from its features alone ({error})") from error
    if not math.isclose(*losses, rel_tol=_CLOSE, abs_tol=_CLOSE):
        head = type(cache.net[cache.net.module_names[cache.frozen]]).__name__
        raise NotCached(f"{head} computes another loss from the condensed features: {losses[1]:.6g}, not {losses[0]:.6g}")


@contextmanager
def _traceless(cache: FeatureCache) -> Iterator[None]:
    """Run the block as a step would, the frozen modules in evaluation mode, without gradients and changes of statistics."""
    net = cache.net
    with torch.no_grad(), unchanged_buffers(net), torch.compiler.set_stance("force_eager"):
        for name in net.module_names[: cache.frozen]:
            net[name].eval()
        try:
            yield
        finally:
            net.train(net.training)


def _first_batch(experiment: Experiment, cache: FeatureCache) -> Batch:
    view = cache.views.data[-1]
    return experiment.task.collate([view[SampleKey(0, index)] for index in (0, cache.views.images - 1)])


def steps_from(
    experiment: Experiment,
    cache: FeatureCache | None,
    data: Dataset,
    batches: TrainBatches,
    end: int,
    stop: StopRequest,
    bad_images: BadImageLog,
) -> Callable[[int], StepLoader]:
    """Return a function that loads the data of the steps from its argument on: images, or where they are cached, features."""

    def on_images(steps: range) -> TrainLoader:
        return train_loader(experiment, data, batches, steps)

    if cache is None:
        return lambda step: on_images(range(step, end))

    def fill() -> bool:
        return cache.fill(lambda: Vote.for_request(stop), bad_images)

    return lambda step: FeatureSteps(cache, batches, range(step, end), fill=fill, on_images=on_images)
