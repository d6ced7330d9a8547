"""Stages of transforms: in the workers, on the device for a whole batch, so that workers ship uint8, or mixing of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from up.data.collate import to_device
from up.data.records import Batch, BatchTransform
from up.data.records import Transform as AnyTransform
from up.data.transforms.erasing import RandomErasing
from up.data.transforms.image import SampleTransform, Scheduled, Transform
from up.data.transforms.table import ByChannel, Normalize, ToTensor
from up.data.transforms.view import Draw, first_view
from up.errors import UserError
from up.seed import key

_BOXES = int.from_bytes(b"boxes", "big")
_NOISE = int.from_bytes(b"noise", "big")


class DeviceTail(nn.Module):
    """``to_tensor, normalize`` and maybe erasing, of a uint8 batch; a float batch stays unchanged. With ``of_floats`` it is of a
    float batch of 0 to 1.

    Erasing is keyed by ``batch.seed`` (B,), which stays on the CPU: the rest of the batch and workers do not matter.
    All devices erase the same rectangles; the noise in them is keyed too, but differs between kinds of devices.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, *, to_tensor: ToTensor, normalize: Normalize, erasing: RandomErasing | None = None, of_floats: bool = False
    ) -> None:
        super().__init__()
        self.mean = tuple(value / to_tensor.top for value in normalize.mean)  # always in units of 0..1
        self.std = tuple(value / to_tensor.top for value in normalize.std)
        self.erasing, self.of_floats, self.top = erasing, of_floats, to_tensor.top
        numbers = (normalize.mean, normalize.std) if of_floats else (self.mean, self.std)
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in numbers)
        self.register_buffer("scale", (std if of_floats else 1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (mean if of_floats else -mean / std).float(), persistent=False)

    def forward(self, batch: Batch) -> Batch:
        """Normalise ``image`` (B, C, H, W) to float32, in its memory format.

        Images of several sizes are a list, and stay one.
        """
        if isinstance(batch.image, list):  # of several sizes
            alone = [Batch(image=image[None], seed=batch.seed[row : row + 1]) for row, image in enumerate(batch.image)]
            return Batch(batch, image=[self(each).image[0] for each in alone])
        if batch.image.is_floating_point() != self.of_floats:
            return batch
        if self.scale.device != batch.image.device:
            self.to(batch.image.device)  # once: a copy every step would hold the host up
        if self.of_floats:  # one by one, as packages do: floats have no 256 levels that both ways agree on
            image = (batch.image * self.top).sub_(self.shift).div_(self.scale)
        else:
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


@dataclass(frozen=True)
class Stages:
    """Transforms by where they run."""

    worker: Sequence[AnyTransform] = ()
    device: Callable[[Batch], Batch] | None = None
    batch: BatchTransform | None = None

    @cached_property
    def is_scheduled(self) -> bool:
        """Whether a transform changes over the training, so that ``first_view`` is of one visit."""
        return any(isinstance(each, Scheduled) for each in self.worker)

    @cached_property
    def first_view(self) -> tuple[Draw | None, Sequence[AnyTransform]]:
        """The first transforms as a view of an image, and the rest."""
        return first_view(self.worker)

    def mixing(self, batch_fn: BatchTransform | None) -> BatchTransform | None:
        """Return the mixing of batches, a transform or ``batch_fn``. Raises ``UserError`` for both."""
        if batch_fn is not None and self.batch is not None:
            raise UserError("batches would be mixed twice: keep either batch_fn or one of torch_mixup and torch_cutmix_mixup.")
        return batch_fn or self.batch


def split(transforms: Sequence[AnyTransform], *, of_floats: bool = False) -> Stages:
    """Run ``to_tensor, normalize[, torch_randerase]`` at the end on the device, and mixing without a second sample on batches.

    ``of_floats``: images are floats of 0 to 1 before ``to_tensor`` already.
    Raises ``UserError`` when ``normalize`` is evidently in other units than its input, and for two mixing transforms.
    """
    of_batches = [each for each in transforms if isinstance(each, SampleTransform) and not each.takes_second]
    rest = [transform for transform in transforms if transform not in of_batches]
    check_units(rest)
    mixing: BatchTransform | None = None
    for transform in of_batches:
        mixing = Stages((), batch=transform.as_batch_fn()).mixing(mixing)
    erasing = rest[-1] if rest and isinstance(rest[-1], RandomErasing) else None
    before = rest if erasing is None else rest[:-1]
    if len(before) >= 2 and isinstance(before[-2], ToTensor) and isinstance(before[-1], Normalize):
        return Stages(
            before[:-2], DeviceTail(to_tensor=before[-2], normalize=before[-1], erasing=erasing, of_floats=of_floats), mixing
        )
    return Stages(rest, None, mixing)


class DeviceStage:
    """Moves a batch to the device and finishes its images there; seeds and indices stay on the host.

    A batch of features, which has no images, is moved only.
    """

    def __init__(self, tail: Callable[[Batch], Batch] | None, device: torch.device, *, channels_last: bool) -> None:
        self.tail = deepcopy(tail)  # on the device, where the data set's own must not be: it is sent to workers
        self.device = device
        self.channels_last = channels_last

    def __call__(self, batch: Batch) -> Batch:
        moved = to_device(batch, self.device, channels_last=self.channels_last)
        return self.tail(moved) if self.tail is not None and "image" in moved else moved


def expect_numbers(transforms: Sequence[AnyTransform]) -> None:
    """Raise ``UserError`` when no transform converts the levels of an image to float, so that a net would get uint8."""
    ours = [isinstance(transform, (Transform, SampleTransform, v2.Transform)) for transform in transforms]
    if all(ours) and not any(isinstance(transform, ToTensor) for transform in transforms):
        raise UserError("got transforms that leave images as uint8 levels, expected to_tensor and normalize at the end.")


def expect_channels(transforms: Sequence[AnyTransform], channels: int | None) -> None:
    """Raise ``UserError`` when ``normalize`` has means for another number of channels than images have; None is unknown."""
    for at, transform in enumerate(transforms):
        if isinstance(transform, v2.Grayscale | v2.RGB):
            channels = getattr(transform, "num_output_channels", 3)
        elif isinstance(transform, ByChannel) and channels not in (None, len(transform.mean)):
            expected = f"{channels}, one for each channel that the image reader returns"
            raise UserError(got=len(transform.mean), expected=expected, key=f"transformer.{at}.kwargs.mean")


def check_units(transforms: Sequence[AnyTransform]) -> None:
    """Raise ``UserError`` for a second ``to_tensor``, and for ``normalize`` in 0..255 after one to 0..1, or the other way round."""
    if sum(isinstance(transform, ToTensor) for transform in transforms) > 1:
        raise UserError("to_tensor is twice in the transformers. Remove one.")
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
