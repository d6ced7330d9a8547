"""Build the search of a supernet: the held-out images, with the transforms of evaluation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from up.build.data import build_transforms, channels_of, halves_in, input_size_of, section_of, workers_of
from up.data.bad_images import BadImages
from up.data.dataset import KeyedDataset
from up.data.loader import EvalLoader
from up.data.records import Dataset
from up.data.sampler import TrainBatches
from up.data.transforms.stages import DeviceStage
from up.distributed import group
from up.engine.evaluate import Evaluation
from up.engine.precision import Precision
from up.supernet.halves import FixedBatches
from up.tasks.experiment import Experiment
from up.tracking.log import LOGGER

if TYPE_CHECKING:
    from up.supernet.runner import ArchitectureSearch


def architecture_search_of(
    experiment: Experiment, data: Dataset, batches: TrainBatches, steps: int, precision: Precision, device: torch.device
) -> ArchitectureSearch | None:
    """Build the search of a run of ``steps`` steps; None if its runner searches for no architecture."""
    halves = halves_in(experiment, data)
    if halves is None:
        return None
    from up.supernet.runner import ArchitectureSearch  # and the networks of searches

    if not isinstance(data, KeyedDataset):
        what = f"{type(data).__name__} has no subsets. Derive it from up.data.dataset.KeyedDataset."
        raise experiment.error(what, key="dataset.train.dataset.type")
    section = section_of(experiment, "train")
    held = data.subset(halves.held_out)
    if experiment.config.dataset.test is not None:
        held = held.with_transforms(build_transforms(experiment, "test"))
    fixed = FixedBatches(len(held), batch_size=batches.global_batch_size, rank=group.rank(), world_size=group.world_size())
    bad = BadImages(max_bad=held.max_bad, total=len(held), on_new=lambda each: LOGGER.warning("left out of the search: %s", each))
    loader = EvalLoader(held, fixed, workers=workers_of(section), collate=experiment.task.collate, bad_images=bad)
    channels_last = experiment.config.runtime.channels_last
    stage = DeviceStage(experiment.task.stages(held).device, device, channels_last=channels_last)
    evaluation = Evaluation(loader, stage, partial(experiment.task.evaluator, held), precision)
    net = [module.model_dump(exclude_defaults=True) for module in experiment.config.net]
    image = (channels_of(experiment), *input_size_of(experiment))
    return ArchitectureSearch(evaluation, batches.steps_per_epoch, steps, net, image)
