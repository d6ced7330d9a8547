"""Images and the base classes of their transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from pydantic import Field
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from up.config.contract import PartError, called
from up.data.records import BatchTransform, Sample
from up.data.records import Image as Image
from up.data.records import Transform as AnyTransform
from up.errors import Ending, UserError

Targets: TypeAlias = Mapping[str, tv_tensors.TVTensor]  # masks and boxes of an image, by the names of their fields
Size: TypeAlias = tuple[int, int]  # height, width
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

MODES: dict[Interpolation, InterpolationMode] = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "box": InterpolationMode.BOX,
    "hamming": InterpolationMode.HAMMING,
    "lanczos": InterpolationMode.LANCZOS,
}
BY_PILLOW = frozenset({"nearest", "box", "hamming", "lanczos"})  # torch lacks three, and its nearest differs at ties
MEAN_COLOUR = (124, 116, 104)  # of ImageNet: 255 * (.485, .456, .406)
MEAN_GREY = 117  # its luma


class Transform(ABC):
    """A transform of an image to one of the same kind; random ones draw from the global generators, seeded by the caller."""

    @abstractmethod
    def __call__(self, image: Image) -> Image:
        """Return the changed image."""

    def with_targets(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        """Return the changed image, with its masks and boxes moved alike; to override where pixels move."""
        return self(image), targets

    def output_size(self, size: Size | None) -> Size | None:
        """Return the (height, width) of the output for an input of ``size``; None is unknown."""
        return size

    def export_op(self) -> dict[str, object] | None:
        """Return this step as an operation of a deployed model's preprocessing; None if it cannot be one."""
        return None


class Geometric(Transform):
    """A transform that moves pixels, and masks and boxes with them."""

    @abstractmethod
    def move(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        """Move both by the same draw."""

    def __call__(self, image: Image) -> Image:
        return self.move(image, {})[0]

    def with_targets(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        return self.move(image, targets)


class Scheduled(Transform):
    """A transform that changes over the training: a data set applies ``at(epoch, index)`` in its place.

    One whose ``at`` depends on the length of the training keeps its epochs in ``total_epochs``.
    """

    total_epochs: int | None = None

    @abstractmethod
    def at(self, epoch: int, index: int = 0) -> Transform:
        """Return the transform of ``epoch``, for the sample ``index``."""


class SampleTransform(ABC):
    """A transform of a whole sample with its targets, and maybe of a second one: ``transform(sample, draw_second)``.

    ``takes_second``: a data set applies it sample by sample; otherwise it is applied to whole batches. ``transform_second``:
    ``draw_second`` passes the second sample through the preceding transforms.
    """

    takes_second: bool = True
    transform_second: bool = False

    @abstractmethod
    def __call__(self, sample: Sample, draw_second: Callable[[], Sample]) -> Sample:
        """Return the changed sample."""

    def as_batch_fn(self) -> BatchTransform | None:
        """Return the same for whole batches; None for a transform that works on samples only, whose ``takes_second`` is true."""
        return None


def applied(transform: AnyTransform, image: Image, targets: Targets, filename: str) -> tuple[Image, Targets]:
    """Transform ``image`` and ``targets``.

    Raises ``UserError`` with the file's name for errors of torchvision's transforms, and for a file that a transform cannot read.
    """
    changed: object
    try:
        if targets and isinstance(transform, Transform):
            changed, targets = transform.with_targets(image, targets)
        elif targets and isinstance(transform, v2.Transform):
            changed, targets = transform(image, dict(targets))
        else:
            changed = transform(image)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError) or not (isinstance(transform, v2.Transform) or _is_unusual(image)):
            raise
        name = f"v2.{type(transform).__name__}" if isinstance(transform, v2.Transform) else type(transform).__name__
        unusual = f"an image {kind_of(image)}: " if _is_unusual(image) else ""
        raise UserError(f"{name}: {unusual}{error} (at {filename})") from error
    except OSError as error:
        if isinstance(error, Ending):
            raise
        raise UserError(f"{type(transform).__name__}: {error} (at {filename})") from error
    if isinstance(changed, PILImage | torch.Tensor):
        return changed, targets
    fix = "Add `return image`." if changed is None else "Convert the result."
    what = f"returned {kind_of(changed)}, expected the changed image: a Pillow image or a tensor (3, H, W). {fix}"
    raise PartError(type(transform), f"{called(type(transform))} {what}")


def _is_unusual(image: Image) -> bool:
    """Whether an image is not three channels of 8 bits, the only form that some transforms take."""
    return isinstance(image, torch.Tensor) and (image.shape[0] != 3 or image.dtype != torch.uint8)


def kind_of(value: object) -> str:
    """Describe a value for a message: its type, and its dtype and shape or value."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"of {type(value).__name__} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"


def with_pillow(operation: Callable[[PILImage], PILImage], image: Image) -> Image:
    """Apply an operation that only Pillow has; a uint8 tensor stays one."""
    if isinstance(image, torch.Tensor):
        expect_levels(image)
        changed: torch.Tensor = F.pil_to_tensor(operation(F.to_pil_image(image)))
        return changed
    return operation(image)


def moved(transform: v2.Transform, image: Image, targets: Targets, *, by_pillow: bool = False) -> tuple[Image, Targets]:
    """Apply one draw of a transform of torchvision to an image, masks and boxes; ``by_pillow``: to the image in Pillow's form."""
    as_pillow = by_pillow and isinstance(image, torch.Tensor)
    if as_pillow:
        expect_levels(image)
        image = F.to_pil_image(image)
    changed, targets = transform(image, dict(targets)) if targets else (transform(image), targets)
    return F.pil_to_tensor(changed) if as_pillow else changed, targets


def tensor_of(levels: NDArray[np.uint8]) -> torch.Tensor:
    """Return levels (H, W, C) as a tensor (C, H, W) of the same memory; numpy transposes them in a third of torch's time."""
    return torch.from_numpy(levels.transpose(2, 0, 1))


def levels_of(image: PILImage) -> torch.Tensor:
    """Return the levels of an image as torchvision's ``pil_to_tensor`` does, (C, H, W); for RGB in half the time."""
    if image.mode == "RGB":
        return tensor_of(np.array(image))
    levels: torch.Tensor = F.pil_to_tensor(image)
    return levels


def size_of(image: Image) -> Size:
    """Return (height, width)."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    return image.height, image.width


def expect_levels(image: Image) -> None:
    """Raise ``UserError`` unless the image still consists of uint8 levels."""
    if isinstance(image, torch.Tensor) and image.dtype != torch.uint8:
        raise UserError(
            f"got an image of {image.dtype}, expected uint8: put this transform before to_tensor in the transformer list, or leave "
            "it out for images of more than 8 bits"
        )


def height_width(size: int | tuple[int, int]) -> Size:
    """Complete ``224`` to (224, 224); a pair is (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UserError(got=size, expected="pixels, as in 224 or [224, 224] (height, width)", key="size")
    return height, width


def expect_range(pair: tuple[float, float], name: str) -> tuple[float, float]:
    """Return the (low, high) pair. Raises ``UserError`` unless it is positive and in order."""
    low, high = pair
    if not 0 < low <= high:
        raise UserError(got=list(pair), expected="[low, high] with 0 < low <= high", key=name)
    return low, high
