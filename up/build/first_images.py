"""Fixed weights that are computed from the first training images, such as those of a whitening layer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from up.data.loader import Collate
from up.data.records import Dataset, SampleKey
from up.engine.step import BatchStage
from up.models.net import Net

_BATCH = 500


@runtime_checkable
class FitsImages(Protocol):
    """A module that computes weights of its own from the first ``fit_images`` training images, before training."""

    fit_images: int

    def fit(self, images: Tensor) -> None:
        """Compute the weights from images (N, C, H, W), as the net gets them."""


def fit_to_images(net: Net, data: Dataset, stage: BatchStage, collate: Collate) -> None:
    """Give modules that ask for them the first training images of epoch 0; reads nothing where none does.

    Weights that are loaded afterwards, such as those of a checkpoint, replace the result.
    """
    for module in net.children():
        if isinstance(module, FitsImages):
            number = min(module.fit_images, len(data))
            batches = (range(at, min(at + _BATCH, number)) for at in range(0, number, _BATCH))
            images = [stage(collate([data[SampleKey(0, index)] for index in batch]))["image"].cpu() for batch in batches]
            module.fit(torch.cat(images))
