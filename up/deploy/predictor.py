"""Prediction with a checkpoint: the net of the configuration, its reader and its test transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from up.build.data import build_reader, build_transforms
from up.build.trained import Trained
from up.bundle.answers import Floats, Outputs, OutputSpec
from up.bundle.operations import Placement, placement_of
from up.bundle.predictor import Predictor
from up.bundle.preprocess import ImageSource
from up.data.decoding import SUFFIXES, read_rgb
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


def checkpoint_predictor(
    experiment: Experiment, trained: Trained, *, topk: int | None = None, batch_size: int = 32
) -> Predictor[Sample]:
    """Predict with a trained net in float32, however it was trained, as a package computes it."""
    served = served_by(experiment.task, trained.net, trained.class_names, True)
    if (mode := experiment.config.runtime.compile_mode) is not None:
        served.module.compile(mode=mode)
    model = TorchModel(served.module, served.outputs, trained.device)
    reader, transforms = build_reader(experiment, "test"), build_transforms(experiment, "test")
    pipeline = experiment.task.pipeline(reader, transforms)
    with experiment.placing("dataset.test.dataset.kwargs.transformer"):
        operations = preprocessing_of(reader, transforms) if served.answer.is_spatial else None

    def load(source: ImageSource) -> tuple[Sample, Placement | None]:
        assert isinstance(source, (Path, bytes)), "the command line gives paths"
        sample = pipeline.load(source)
        return sample, None if operations is None else placement_of(operations, sample["size"])

    def run(images: Sequence[Sample]) -> Outputs:
        batch = pipeline.finish(experiment.task.collate(images), trained.device).image
        if not isinstance(batch, Tensor):
            what = "the test transforms leave images their own sizes, which do not fit into one batch"
            raise UserError(what, key="--batch-size", fix="Set it to 1, or add torch_resize with [height, width].")
        return model(batch)

    def image(file: str) -> Image.Image:
        read = reader(file)
        if not isinstance(read, Tensor) or len(read) == 3:
            return read_rgb(file, background=getattr(reader, "background", None))
        shown = read[:3] if len(read) > 3 else read[:1]
        grey_or_rgb: Image.Image = to_pil_image(shown.clamp(0, 1) if shown.is_floating_point() else shown)
        return grey_or_rgb.convert("RGB")

    return Predictor(served.answer, load, run, image, topk, batch_size, getattr(reader, "suffixes", SUFFIXES))
