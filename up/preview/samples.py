"""A sample after each of its transforms: the data set's own transforms, one more each time, on the same keyed randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from torch import Tensor
from torchvision.transforms import v2

from up.data.dataset import KeyedDataset
from up.data.records import Batch, Sample, SampleKey, Transform
from up.data.transforms.image import SampleTransform
from up.data.transforms.stages import DeviceStage
from up.data.transforms.table import RandomResizedCrop
from up.data.transforms.view import View
from up.data.transforms.viewing import Units, boxes_in, units_after
from up.errors import UserError
from up.types import Kwargs

Collate = Callable[[Sequence[Sample]], Batch]


class Shown(NamedTuple):
    """An image after a transform: ``images`` are its views (C, H, W), ``drawn`` what the transform drew, as far as it is known."""

    images: Sequence[Tensor]
    units: Units
    drawn: Kwargs
    is_changed: bool
    remark: str
    boxes: Mapping[str, Sequence[Sequence[float]]]


class Grid(NamedTuple):
    """Transforms of a data set, of whose samples pages show the image after each."""

    data: KeyedDataset
    collate: Collate
    device: torch.device

    def stages(self, key: SampleKey) -> Iterator[Shown]:
        """Yield the image as it was read, then after each transform; transforms of whole batches change nothing here."""
        transforms, before = self.data.transforms, None
        for number in range(len(transforms) + 1):
            applied = transforms[:number]
            with drawing(applied[-1] if applied else None) as drawn:
                sample, images = self._seen(applied, key)
            changed = before is None or not _equal(before, images)
            of_batch = bool(applied) and is_of_batches(applied[-1])
            remark = "" if changed else "mixes whole batches, see there" if of_batch else "unchanged"
            yield Shown(images, units_after(applied), drawn, changed, remark, boxes_in(sample))
            before = images

    def final(self, key: SampleKey) -> Shown:
        """Return the image after all transforms."""
        sample, images = self._seen(self.data.transforms, key)
        return Shown(images, units_after(self.data.transforms), {}, True, "", boxes_in(sample))

    def _seen(self, applied: Sequence[Transform], key: SampleKey) -> tuple[Sample, Sequence[Tensor]]:
        """Return a sample after the first transforms, as a worker sends it, and its images as the device finishes them."""
        data = self.data.with_transforms(applied)
        sample = data[key]
        stage = DeviceStage(data.stages.device, self.device, channels_last=False)
        found = stage(self.collate([sample]))
        return sample, list(found.image)

    def check(self, keys: Sequence[SampleKey], fetched: Batch, rows: Sequence[slice]) -> None:
        """Raise ``UserError`` unless the samples of ``keys``, read again, are the ``rows`` of the loop's batch, bit for bit."""
        for key, own in zip(keys, rows, strict=False):
            again = self.collate([self.data[key]])
            if not _equal(list(fetched.image[own]), list(again.image)):
                what = f"{self.data.where(key.index)} is another image when it is read again"
                raise UserError(what, fix="Draw all randomness of a sample after key.seed(...), and keep nothing between samples.")


def is_of_batches(transform: Transform) -> bool:
    """Whether a transform mixes whole batches, on the device."""
    return isinstance(transform, SampleTransform) and not transform.takes_second


@contextmanager
def drawing(transform: Transform | None) -> Iterator[dict[str, object]]:
    """Collect what a transform draws in the block: parameters of those of torchvision, operations of timm's policies."""
    found: dict[str, object] = {}
    parts = [transform, *getattr(transform, "__dict__", {}).values()]
    watched = [(each, "make_params") for each in parts if isinstance(each, v2.Transform)]
    watched += [(each, "view") for each in parts if isinstance(each, RandomResizedCrop)]
    watched += [(each, "aug_fn") for part in parts for each in _operations(part)]

    def observed(owner: object, original: Callable[..., object]) -> Callable[..., object]:
        def call(*inputs: object, **kwargs: object) -> object:
            made = original(*inputs, **kwargs)
            if isinstance(owner, AugmentOp):
                numbers = [f"{value:.4g}" for value in inputs[1:] if isinstance(value, int | float)]
                found.setdefault("operations", []).append(" ".join([owner.name, *numbers]))  # type: ignore[attr-defined]
            elif isinstance(made, View):
                found.update(made.box._asdict())
            elif isinstance(made, dict):
                found.update({name: plain for name, value in made.items() if (plain := _plain(value)) is not None})
            return made

        return call

    originals = [(owner, method, vars(owner).get(method), getattr(owner, method)) for owner, method in watched]
    for owner, method, _, original in originals:
        setattr(owner, method, observed(owner, original))
    try:
        yield found
    finally:
        for owner, method, own, _ in originals:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)


def _operations(policy: object) -> list[AugmentOp]:
    """List the operations of a policy of timm."""
    if isinstance(policy, RandAugment):
        return list(policy.ops)
    return [operation for pair in policy.policy for operation in pair] if isinstance(policy, AutoAugment) else []


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= 16 else None
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value] if len(value) <= 16 else None
    return value if isinstance(value, int | str | bool) else None


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
        for one, other in zip(some, others, strict=True)
    )
