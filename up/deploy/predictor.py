"""Prediction with a checkpoint: the net of the configuration, its reader and its test transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from up.build.data import build_reader, build_transforms
from up.build.trained import load_trained
from up.bundle.answers import Floats, Outputs, OutputSpec
from up.bundle.operations import Placement, placement_of
from up.bundle.predictor import Predictor
from up.bundle.preprocess import ImageSource
from up.data.records import Sample
from up.errors import UserError
from up.tasks.declaration import served_by
from up.tasks.experiment import Experiment
from up.tasks.served import preprocessing_of

Forward: TypeAlias = Callable[[Floats], Outputs]
"""A function from images (N, 3, H, W) to the outputs by name: a ``TorchModel`` or a ``Session``."""


class TorchModel:
    """A served module as a function of arrays: float32, on the device that it is on."""

    def __init__(self, module: nn.Module, outputs: Sequence[OutputSpec], device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        self.module, self.device = module, device
        self._names = [output.name for output in outputs]

    def __call__(self, images: Floats | Tensor | list[Tensor]) -> Outputs:
        """Return the outputs; images of several sizes are a list, on the device already, where the module takes one."""
        with torch.inference_mode():
            found = self.module(images if isinstance(images, list) else torch.as_tensor(images, device=self.device))
        several = [found] if isinstance(found, Tensor) else found
        return {name: each.float().cpu().numpy() for name, each in zip(self._names, several, strict=True)}


class CheckpointPredictor(Predictor[Sample]):
    """Predicts with a checkpoint, in float32 however the net was trained, as a package computes it."""

    def __init__(self, experiment: Experiment, checkpoint: Path | None, *, topk: int | None = None, batch_size: int = 32) -> None:
        experiment.task.check_served()
        self.trained = load_trained(experiment, checkpoint)
        served = served_by(experiment.task, self.trained.net, self.trained.class_names, True)
        if experiment.config.runtime.compile:
            served.module.compile()
        self._model = TorchModel(served.module, served.outputs, self.trained.device)
        self._collate = experiment.task.collate
        self._reader, self._transforms = build_reader(experiment, "test"), build_transforms(experiment, "test")
        self._pipeline = experiment.task.pipeline(self._reader, self._transforms)
        with experiment.placing("dataset.test.dataset.kwargs.transformer"):
            self._operations = preprocessing_of(self._reader, self._transforms) if served.answer.is_spatial else None
        super().__init__(served.answer, getattr(self._reader, "background", None), topk=topk, batch_size=batch_size)

    def load(self, source: ImageSource) -> tuple[Sample, Placement | None]:
        assert isinstance(source, (Path, bytes)), "the command line gives paths"
        sample = self._pipeline.load(source)
        return sample, placement_of(self._operations, sample["size"]) if self._operations is not None else None

    def run(self, images: Sequence[Sample]) -> Outputs:
        batch = self._pipeline.finish(self._collate(images), self.trained.device).image
        if not isinstance(batch, Tensor):
            what = "the test transforms leave images their own sizes, which do not fit into one batch"
            raise UserError(what, key="--batch-size", fix="Set it to 1, or add torch_resize with [height, width].")
        return self._model(batch)
