"""Samples to a batch, and a batch to its device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from up.data.records import Batch, Image, Sample, image_count
from up.data.transforms.pixels import write_planes
from up.errors import UserError
from up.text import Verbatim

T = TypeVar("T")
INLINE = 1 << 16
"""Bytes of a tensor up to which a worker sends it within its message: shared memory takes .2 ms a tensor on both sides."""
_IN_NUMPY = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
)
_PLAIN = frozenset({str, int, float, bool, type(None)})  # types of the values of long lists, such as names, that hold no tensor
_ON_HOST = ("seed", "index")  # keys of randomness and of results, not needed on the device


def collate(samples: Sequence[Sample], *, one_size: bool = True, lists: Collection[str] = ()) -> Batch:
    """Stack ``samples``, which have the same fields.

    Tensors of one shape are stacked in their own dtype: image (B, C, H, W), masks (B, H, W), soft targets (B, classes). Integers
    and bools, and lists of as many integers each (labels of several heads), become tensors (B,) and (B, heads). The rest is a list
    of B values: names, tensors of several shapes, and always boxes and the fields ``lists``, such as the labels of boxes, of which
    two images have as many only by chance.

    Raises ``UserError`` for fields that some samples lack and, with ``one_size``, for images of different sizes.
    """
    first = samples[0]
    for other in samples:
        if other.keys() != first.keys():
            name = next(iter(other.keys() ^ first.keys()))
            raise UserError(f"of one batch differ: only one of {first.filename} and {other.filename} has {name!r}", key="samples")
        if one_size and _form(other.image) != _form(first.image):
            raise UserError(
                f"images of one batch differ: {first.filename} is {_shown(first.image)}, {other.filename} is "
                f"{_shown(other.image)}. Expected one size: end the transformer in torch_random_resized_crop, or in "
                "torch_resize and torch_center_crop."
            )
    columns = {field: [sample[field] for sample in samples] for field in first}
    return Batch({field: values if field in lists else _stacked(values) for field, values in columns.items()})


def _stacked(values: list[object]) -> object:
    first = values[0]
    if isinstance(first, Tensor):
        of_one_form = all(isinstance(each, Tensor) and (each.shape, each.dtype) == (first.shape, first.dtype) for each in values)
        if of_one_form and not isinstance(first, tv_tensors.BoundingBoxes):
            return _block([each.as_subclass(Tensor) for each in values if isinstance(each, Tensor)])
        return values
    if isinstance(first, int) or _are_rows(values):
        return torch.tensor(values)
    return values


def _block(tensors: list[Tensor]) -> Tensor:
    """Stack tensors; in a worker straight into shared memory, so that the batch is sent without another copy."""
    first = tensors[0]
    shape = (len(tensors), *first.shape)
    if get_worker_info() is None or first.nbytes * len(tensors) <= INLINE:
        block = torch.empty(shape, dtype=first.dtype)
    else:
        memory = torch.UntypedStorage._new_shared(first.nbytes * len(tensors), device="cpu")  # type: ignore[no-untyped-call]
        block = torch.empty(0, dtype=first.dtype).set_(memory).view(shape)
    for row, tensor in enumerate(tensors):
        if tensor.ndim == 3:
            write_planes(tensor, block[row])
        else:
            block[row] = tensor
    return block


def _are_rows(values: list[object]) -> bool:
    """Whether all values are lists of integers, of the same length."""
    lists = [each for each in values if isinstance(each, list) and each and all(isinstance(value, int) for value in each)]
    return len(lists) == len(values) and len({*map(len, lists)}) == 1


def _form(image: Image) -> tuple[torch.Size, torch.dtype]:
    assert isinstance(image, Tensor), "a data set gives tensors"
    return image.shape, image.dtype


def _shown(image: Image) -> str:
    (channels, *_, height, width), dtype = _form(image)
    return f"{width} x {height} ({channels} channels, {str(dtype).removeprefix('torch.')})"


def padded(images: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Pad images (C, H, W) of any sizes to one tensor (B, C, *size): zeros at the right and at the bottom, so that boxes stay.

    Raises ``UserError`` for an image that is larger than ``size`` (height, width).
    """
    height, width = size
    alike = [images] if isinstance(images, Tensor) else images
    for image in alike:
        if image.shape[-2] > height or image.shape[-1] > width:
            got, expected = (f"{wide} x {high}" for high, wide in (image.shape[-2:], size))
            raise UserError(
                "an image to pad", got=Verbatim(got), expected=f"at most {expected}", fix="Resize or crop it, or enlarge `size`."
            )
    made = [pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in alike]
    return made[0] if isinstance(images, Tensor) else torch.stack(made)


def to_device(batch: Batch, device: torch.device, *, channels_last: bool = False) -> Batch:
    """Move every tensor to ``device``, also those in lists and dictionaries; ``seed`` and ``index`` stay on the host.

    ``channels_last``: the memory format of the images, where they are one tensor.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    moved = Batch({name: value if name in _ON_HOST else mapped(value, Tensor, move) for name, value in batch.items()})
    image = moved.get("image") if channels_last else None
    if isinstance(image, Tensor):
        moved["image"] = image.contiguous(memory_format=torch.channels_last)
    return moved


def mapped(value: object, kind: type[T], change: Callable[[T], object]) -> object:
    """Change the values of a kind in a batch, also those in lists, tuples and dictionaries."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(each, kind, change) for key, each in value.items()}
    if isinstance(value, list):
        return value if _PLAIN.issuperset(map(type, value)) else [mapped(each, kind, change) for each in value]
    if isinstance(value, tuple):
        made = tuple(mapped(each, kind, change) for each in value)
        return value._make(made) if hasattr(value, "_make") else made  # a named tuple stays one
    return value


@dataclass(frozen=True)
class Inline:
    """A small tensor on its way out of a worker."""

    values: NDArray[np.generic]

    def tensor(self) -> Tensor:
        """Return it as a tensor again."""
        return torch.from_numpy(self.values)

    def pin_memory(self, device: str | None = None) -> Tensor:
        """Return it in pinned memory; the thread of ``DataLoader`` that pins batches calls this."""
        return self.tensor().pin_memory()


def packed(batch: Batch) -> Batch:
    """Prepare a batch for the pipe of a worker: small tensors travel within the message, without shared memory of their own."""

    def inline(tensor: Tensor) -> Tensor | Inline:
        is_small = type(tensor) is Tensor and tensor.nbytes <= INLINE and tensor.dtype in _IN_NUMPY
        return Inline(tensor.numpy()) if is_small and not tensor.requires_grad else tensor

    return Batch({name: mapped(value, Tensor, inline) for name, value in batch.items()})


def unpacked(batch: Batch) -> Batch:
    """Undo ``packed``."""
    return Batch({name: mapped(value, Inline, Inline.tensor) for name, value in batch.items()})


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors of a batch, also those in lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in([*value.values()])
    elif isinstance(value, list | tuple) and not _PLAIN.issuperset(map(type, value)):
        for each in value:
            yield from tensors_in(each)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Return some rows of a batch, as views. Raises ``UserError`` for a field that has no row for each image."""
    images, fields = image_count(batch), {}
    for field, value in batch.items():
        if isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim):
            if len(value) != images:
                what = f"a batch of {images} images has {len(value)} rows of {field!r}, so it cannot be cut into smaller ones"
                raise UserError(what, fix="Lower batch_size (trainer.accumulate keeps the global batch size).")
            value = value[rows]
        fields[field] = value
    return Batch(fields)


def without_bad(batch: Batch) -> Batch:
    """Drop the rows whose image was replaced, so that none is counted twice; 0 rows may be left."""
    bad = batch.get("bad", [])
    if not any(bad):
        return batch
    kept = [row for row, reason in enumerate(bad) if not reason]
    rows = torch.tensor(kept, dtype=torch.int64)
    return Batch({field: value[rows] if torch.is_tensor(value) else [value[row] for row in kept] for field, value in batch.items()})
