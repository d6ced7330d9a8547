"""What an image is to a transform, and what every transform of images promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from PIL.Image import Image as PILImage
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from up.errors import UserError

Image: TypeAlias = PILImage | torch.Tensor  # Pillow, mode RGB, or (3, H, W): uint8, and float32 after to_tensor
Size: TypeAlias = tuple[int, int]  # height, width
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


class Transform(ABC):
    """An image in, an image of the same kind out; random ones draw from the global generators, seeded by the caller."""

    @abstractmethod
    def __call__(self, image: Image) -> Image:
        """The changed image."""

    def output_size(self, size: Size | None) -> Size | None:
        """The (height, width) that comes out when ``size`` goes in; None is unknown."""
        return size

    def export_op(self) -> dict[str, object] | None:
        """This step in the words of a deployed model's preprocessing, or None when it has no place there."""
        return None


def with_pillow(operation: Callable[[PILImage], PILImage], image: Image) -> Image:
    """Apply an operation that only Pillow has; a uint8 tensor comes back as a uint8 tensor."""
    if isinstance(image, torch.Tensor):
        expect_levels(image)
        changed: torch.Tensor = F.pil_to_tensor(operation(F.to_pil_image(image)))
        return changed
    return operation(image)


def with_tensor(operation: Callable[[torch.Tensor], torch.Tensor], image: Image) -> Image:
    """Apply an operation on (3, H, W); an image of Pillow comes back as one."""
    if isinstance(image, torch.Tensor):
        return operation(image)
    changed: PILImage = F.to_pil_image(operation(F.pil_to_tensor(image)))
    return changed


def size_of(image: Image) -> Size:
    """(height, width)."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    return image.height, image.width


def expect_levels(image: torch.Tensor) -> None:
    """A ``UserError`` unless the image still consists of uint8 levels."""
    if image.dtype != torch.uint8:
        raise UserError(
            f"got an image of {image.dtype}, expected uint8: this transform has to stand before to_tensor in the transformer list"
        )


def height_width(size: int | tuple[int, int], name: str) -> Size:
    """``224`` is (224, 224); a pair is (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UserError(f"{name}.size: got {size}, expected pixels, as in 224 or [224, 224] (height, width)")
    return height, width


def expect_probability(value: float, name: str) -> float:
    """The value, if it lies within 0..1."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}: got {value}, expected a probability, 0 to 1")
    return value


def expect_range(pair: tuple[float, float], name: str) -> tuple[float, float]:
    """The (low, high) pair, if it is positive and in order."""
    low, high = pair
    if not 0 < low <= high:
        raise UserError(f"{name}: got {list(pair)}, expected [low, high] with 0 < low <= high")
    return low, high
