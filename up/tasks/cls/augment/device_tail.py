"""The end of a transformer list that runs on the device for a whole batch, so that workers ship uint8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from up.data.records import Batch
from up.errors import UserError
from up.seed import key
from up.tasks.cls.augment.erasing import RandomErasing
from up.tasks.cls.augment.image import Transform
from up.tasks.cls.augment.sample_mixing import SampleMix
from up.tasks.cls.augment.transforms import Normalize, ToTensor

_BOXES = int.from_bytes(b"boxes", "big")
_NOISE = int.from_bytes(b"noise", "big")


class DeviceTail(nn.Module):
    """``to_tensor, normalize`` and maybe erasing, of a uint8 batch; a float batch passes untouched.

    Erasing is keyed by ``batch.seed`` (B,), which stays on the CPU: rest of the batch and workers do not matter.
    All devices erase the same rectangles; the noise in them is keyed too, but a kind of device has numbers of its own.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, *, to_tensor: ToTensor, normalize: Normalize, erasing: RandomErasing | None = None) -> None:
        super().__init__()
        self.mean = tuple(value / to_tensor.top for value in normalize.mean)  # always in units of 0..1
        self.std = tuple(value / to_tensor.top for value in normalize.std)
        self.erasing = erasing
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (self.mean, self.std))
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, batch: Batch) -> Batch:
        """The batch with ``image`` (B, 3, H, W) as normalised float32, in the memory format that it came in."""
        if batch.image.is_floating_point():
            return batch
        if self.scale.device != batch.image.device:
            self.to(batch.image.device)  # once: a copy every step would hold the host up
        image = batch.image.to(torch.float32).mul_(self.scale).add_(self.shift)
        if self.erasing is not None:
            self._erase_(image, batch.seed, self.erasing)
        return Batch(batch, image=image)

    @staticmethod
    def _erase_(images: Tensor, seeds: Tensor, erasing: RandomErasing) -> None:
        rectangles, noise = torch.Generator(), torch.Generator(images.device)
        for image, seed in zip(images, seeds.tolist(), strict=True):
            boxes = erasing.boxes(image.shape[1], image.shape[2], rectangles.manual_seed(key(seed, _BOXES)))
            if boxes:
                erasing.erase_(image, boxes, noise.manual_seed(key(seed, _NOISE)))


def split_tail(transforms: Sequence[Callable[..., Any]]) -> tuple[list[Callable[..., Any]], DeviceTail | None]:
    """What stays with the workers, and the ``to_tensor, normalize[, torch_randerase]`` at the end, if the list ends so.

    Raises ``UserError`` when ``normalize`` is evidently in other units than what comes before it.
    """
    check_units(transforms)
    last = transforms[-1] if transforms else None
    erasing = last if isinstance(last, RandomErasing) else None
    rest = list(transforms if erasing is None else transforms[:-1])
    if len(rest) >= 2 and isinstance(rest[-2], ToTensor) and isinstance(rest[-1], Normalize):
        return rest[:-2], DeviceTail(to_tensor=rest[-2], normalize=rest[-1], erasing=erasing)
    return list(transforms), None


def expect_numbers(transforms: Sequence[Callable[..., Any]]) -> None:
    """A ``UserError`` when nothing makes numbers of an image's levels, so that a net would get uint8."""
    ours = [isinstance(transform, (Transform, SampleMix, v2.Transform)) for transform in transforms]
    if all(ours) and not any(isinstance(transform, ToTensor) for transform in transforms):
        raise UserError("got transforms that leave images as uint8 levels, expected to_tensor and normalize at the end.")


def check_units(transforms: Sequence[Callable[..., Any]]) -> None:
    """A ``UserError`` when ``normalize`` is in 0..255 after ``to_tensor``, or in 0..1 after ``custom_to_tensor``."""
    top = None
    for transform in transforms:
        if isinstance(transform, ToTensor):
            top = transform.top
        elif isinstance(transform, Normalize) and top is not None:
            _check_units(transform, top)
            top = None


def _check_units(normalize: Normalize, top: float) -> None:
    got = f"normalize: got mean {list(normalize.mean)} and std {list(normalize.std)}"
    if top == 1 and (max(normalize.mean) > 1 or max(normalize.std) > 1):
        raise UserError(f"{got}, expected numbers within 0..1 after to_tensor: divide both by 255")
    if top == 255 and 0 < max(normalize.mean) <= 1:
        raise UserError(f"{got}, expected numbers within 0..255 after custom_to_tensor: multiply by 255, or use to_tensor")
