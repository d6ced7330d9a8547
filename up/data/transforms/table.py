"""Transforms by the names that configurations use: geometry, colour, and levels to float."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import MinLen
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from up.config.argument import NoEffect
from up.config.checked import checked
from up.config.contract import Contract, Method
from up.data.geometry import Box, center_corner
from up.data.records import Transform as AnyTransform
from up.data.transforms.crop import RandomCrop
from up.data.transforms.image import (
    BY_PILLOW,
    MODES,
    Geometric,
    Image,
    Interpolation,
    Probability,
    Scheduled,
    Size,
    Targets,
    Transform,
    expect_range,
    height_width,
    moved,
    size_of,
)
from up.data.transforms.pixels import jittered
from up.data.transforms.view import View
from up.errors import UserError
from up.registry import Registry
from up.seed import key
from up.text import count
from up.types import Argument

_NOT_FROM_YAML = (  # they take code, tensors, labels or boxes, or give something other than one image
    "Transform Lambda Compose RandomApply RandomChoice RandomOrder LinearTransformation CutMix MixUp FiveCrop TenCrop "
    "ToDtype ConvertImageDtype ToTensor ToPureTensor UniformTemporalSubsample RandomIoUCrop ConvertBoundingBoxFormat "
    "ClampBoundingBoxes ClampKeyPoints SanitizeBoundingBoxes SanitizeKeyPoints SetClampingMode"
)


def _torchvision_names() -> list[str]:
    found = (name for name, item in vars(v2).items() if inspect.isclass(item) and issubclass(item, v2.Transform))
    return [f"v2.{name}" for name in found if name not in _NOT_FROM_YAML.split()]


def _torchvision(name: str) -> type[v2.Transform] | None:
    if name == "v2.RandomCrop":
        return RandomCrop
    return getattr(v2, name.removeprefix("v2.")) if name in _torchvision_names() else None


TRANSFORMS = Registry(
    "transform",
    {
        "torch_random_resized_crop": "up.data.transforms.table:RandomResizedCrop",
        "torch_resize": "up.data.transforms.table:Resize",
        "torch_center_crop": "up.data.transforms.table:CenterCrop",
        "torch_random_horizontal_flip": "up.data.transforms.table:RandomHorizontalFlip",
        "alternating_flip": "up.data.transforms.table:AlternatingFlip",
        "torch_color_jitter": "up.data.transforms.table:ColorJitter",
        "torch_auto_augmentation": "up.data.transforms.policies:AutoAugment",
        "torch_random_augmentation": "up.data.transforms.policies:RandAugment",
        "torch_random_augmentationIncre": "up.data.transforms.policies:IncreasingRandAugment",
        "torch_randerase": "up.data.transforms.erasing:RandomErasing",
        "to_tensor": "up.data.transforms.table:ToTensor",
        "custom_to_tensor": "up.data.transforms.table:LevelsToTensor",
        "normalize": "up.data.transforms.table:Normalize",
        "normalize_inverse": "up.data.transforms.table:Denormalize",
        "cutout": "up.data.transforms.occlusion:Cutout",
        "gridmask": "up.data.transforms.occlusion:GridMask",
        "hide_and_seek": "up.data.transforms.occlusion:HideAndSeek",
    },
    others=_torchvision,
    other_names=_torchvision_names,
    contract=Contract(
        "docs/add_a_part.md", methods=(Method("__call__", "def __call__(self, image: Image) -> Image", "the changed image"),)
    ),
)


_FLIP = 0x666C6970  # its own key, not the run's seed: the order of the images has that one


class RandomResizedCrop(Geometric):
    """A random part of the image, of a random aspect, resized to ``size`` (Szegedy et al. 2015).

    ``scale`` is the part's share of the area, ``ratio`` its width over its height; ``size`` is pixels, one or [h, w].
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.size, self.interpolation = height_width(size), interpolation
        self._scale = expect_range(scale, "torch_random_resized_crop.scale")
        self._ratio = expect_range(ratio, "torch_random_resized_crop.ratio")
        self._crop = v2.RandomResizedCrop(
            self.size, scale=self._scale, ratio=self._ratio, interpolation=MODES[interpolation], antialias=True
        )
        low, high = torch.log(torch.tensor(self._ratio)).tolist()
        self._log_ratio: tuple[float, float] = low, high

    def move(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        if targets or self.interpolation in BY_PILLOW:
            return moved(self._crop, image, targets, by_pillow=self.interpolation in BY_PILLOW)
        return self.view(size_of(image)).of(image), targets

    def view(self, size: Size) -> View:
        """Draw the part of an image of this size: torchvision's draws, without its 40 us of dispatch."""
        return View.whole(self._box(*size), self.size, self.interpolation)

    def _box(self, height: int, width: int) -> Box:
        drawn = torch.empty(1)  # a new one for each draw takes as long as the draw
        for _ in range(10):
            area = height * width * drawn.uniform_(*self._scale).item()
            aspect = drawn.uniform_(*self._log_ratio).exp_().item()
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                top = int(drawn.random_(0, height - high + 1).item())
                return Box(top, int(drawn.random_(0, width - wide + 1).item()), high, wide)
        low, high_ratio = self._ratio
        wide, high = width, height
        if width / height < low:
            high = round(wide / low)
        elif width / height > high_ratio:
            wide = round(high * high_ratio)
        return Box((height - high) // 2, (width - wide) // 2, high, wide)

    def output_size(self, size: Size | None) -> Size | None:
        return self.size


class Resize(Geometric):
    """Resize with antialiasing: an int is the shorter side (the aspect stays), [h, w] is the exact size in pixels."""

    def __init__(self, *, size: int | tuple[int, int], interpolation: Interpolation = "bilinear") -> None:
        height_width(size)
        self.size = size
        self.interpolation = interpolation
        self._resize = v2.Resize(size, interpolation=MODES[interpolation], antialias=True)

    def move(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        if targets or self.interpolation in BY_PILLOW:
            return moved(self._resize, image, targets, by_pillow=self.interpolation in BY_PILLOW)
        return self.view(size_of(image)).of(image), targets

    def view(self, size: Size) -> View:
        """Return the whole of an image of this size, resized."""
        resized = self.output_size(size)
        assert resized is not None, "the size is known"
        return View.whole(Box(0, 0, *size), resized, self.interpolation)

    def output_size(self, size: Size | None) -> Size | None:
        if not isinstance(self.size, int):
            return self.size
        if size is None:
            return None
        height, width = size
        longer = int(self.size * max(size) / min(size))  # rounded down, as torchvision does
        return (self.size, longer) if height <= width else (longer, self.size)

    def export_op(self) -> dict[str, object]:
        return {
            "op": "resize",
            "mode": "short_side" if isinstance(self.size, int) else "exact",
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "interpolation": self.interpolation,
            "antialias": self.interpolation != "nearest",
            "rounding": "floor",  # of the longer side
        }


class CenterCrop(Geometric):
    """The middle ``size`` pixels, h = w or [h, w]; an image that is smaller is padded with black first."""

    def __init__(self, *, size: int | tuple[int, int]) -> None:
        self.size = height_width(size)

    def move(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        window = self.window(size_of(image))  # torchvision moves boxes by another pixel than the image it pads
        return F.crop(image, *window), {name: F.crop(each, *window) for name, each in targets.items()}

    def window(self, size: Size) -> Box:
        """Return the part of an image of this size; it starts below 0 where the image is padded."""
        return Box(*center_corner(size, self.size), *self.size)

    def output_size(self, size: Size | None) -> Size | None:
        return self.size

    def export_op(self) -> dict[str, object]:
        return {"op": "center_crop", "size": list(self.size), "rounding": "half_even", "pad": 0}


class RandomHorizontalFlip(Geometric):
    """Mirror left and right with probability ``p``."""

    @checked
    def __init__(self, *, p: Probability = 0.5) -> None:
        self.p = p

    def move(self, image: Image, targets: Targets) -> tuple[Image, Targets]:
        if not self.mirrors():
            return image, targets
        return F.horizontal_flip(image), {name: F.horizontal_flip(target) for name, target in targets.items()}

    def mirrors(self) -> bool:
        """Draw whether an image is mirrored."""
        return torch.empty(1).uniform_().item() < self.p  # half as long as torch.rand after a crop's draws


class AlternatingFlip(Scheduled):
    """Mirror each image in every second epoch: half of them, chosen by their index, in the even ones (Jordan 2024, section 3.6).

    Over two epochs every image is seen in both forms, where a random flip repeats one of them half of the time.
    """

    def __init__(self) -> None:
        self._forms = (RandomHorizontalFlip(p=0.0), RandomHorizontalFlip(p=1.0))

    def at(self, epoch: int, index: int = 0) -> Transform:
        """Return no flip or a flip, by the parity of ``epoch`` and a bit drawn for ``index``."""
        return self._forms[(key(_FLIP, index) + epoch) % 2]

    def __call__(self, image: Image) -> Image:
        return image


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue at random, in a random order.

    A number x draws the factor from [1 - x, 1 + x] (hue: from [-x, x], x at most .5), a pair is the range itself.
    """

    def __init__(
        self,
        *,
        brightness: float | tuple[float, float] = 0.0,
        contrast: float | tuple[float, float] = 0.0,
        saturation: float | tuple[float, float] = 0.0,
        hue: float | tuple[float, float] = 0.0,
    ) -> None:
        try:
            self._jitter = v2.ColorJitter(brightness, contrast, saturation, hue)
        except ValueError as error:
            expected = "strengths such as .4 (of hue at most .5) or [low, high]"
            argument = next((name for name in ("brightness", "contrast", "saturation", "hue") if name in str(error)), "")
            raise UserError(str(error), expected=expected, key=argument) from error

    def __call__(self, image: Image) -> Image:
        return jittered(self._jitter, image)


class ToTensor(Transform):
    """Levels 0..255 to float32 0..1, (C, H, W); a float image of 0..1, as of ``fs_multichannel``, stays unchanged."""

    top = 1.0  # the value that level 255 becomes

    def __call__(self, image: Image) -> torch.Tensor:
        levels: torch.Tensor = image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)
        if levels.is_floating_point():
            return levels * self.top
        return levels.to(torch.float32).div_(255 / self.top)

    def export_op(self) -> dict[str, object]:
        return {"op": "to_float", "divide_by": 255 / self.top}


class LevelsToTensor(ToTensor):
    """Levels 0..255 to float32, (C, H, W): not scaled, or to 0..1 with ``norm_image``.

    A ``normalize`` after it is in the same units.
    """

    def __init__(self, *, norm_image: bool = False) -> None:
        self.top = 1.0 if norm_image else 255.0


class ByChannel(Transform):
    """A transform with a ``mean`` and a ``std`` for each channel."""

    def __init__(self, *, mean: Annotated[tuple[float, ...], MinLen(1)], std: Annotated[tuple[float, ...], MinLen(1)]) -> None:
        if min(std) <= 0:
            raise UserError(got=list(std), expected="numbers above 0, such as [.229, .224, .225]", key="std")
        if len(mean) != len(std):
            raise UserError(got=list(std), expected=f"{count(len(mean), 'number')}, as many as `mean` has", key="std")
        self.mean, self.std = mean, std

    def _numbers(self, image: Image, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return image, mean and std as tensors. Raises ``UserError`` for an image before ``to_tensor`` or of other channels."""
        if not isinstance(image, torch.Tensor) or not image.is_floating_point():
            got = f"a {image.dtype} tensor" if isinstance(image, torch.Tensor) else "a PIL image"
            raise UserError(f"{name}: got {got}, expected a float tensor: put to_tensor before {name} in the transformers")
        if len(self.mean) != image.shape[0]:
            expected = f"{image.shape[0]}, one for each channel of the image"
            raise UserError(f"{name}: mean and std", got=len(self.mean), expected=expected)
        mean, std = (torch.tensor(each, dtype=image.dtype, device=image.device).view(-1, 1, 1) for each in (self.mean, self.std))
        return image, mean, std


class Normalize(ByChannel):
    """``(x - mean) / std`` by channel; in the units of its input: 0..1 after to_tensor."""

    def __init__(
        self,
        *,
        inplace: Annotated[bool, NoEffect("the numbers are the same; whole batches are normalized in place on the device")] = False,
        **kwargs: Argument,
    ) -> None:
        del inplace
        super().__init__(**kwargs)

    def __call__(self, image: Image) -> torch.Tensor:
        values, mean, std = self._numbers(image, "normalize")
        return values.sub(mean).div_(std)

    def export_op(self) -> dict[str, object]:
        return {"op": "normalize", "mean": list(self.mean), "std": list(self.std)}


class Denormalize(ByChannel):
    """``x * std + mean`` by channel: undoes ``normalize``."""

    def __call__(self, image: Image) -> torch.Tensor:
        values, mean, std = self._numbers(image, "normalize_inverse")
        return values.mul(std).add_(mean)

    def export_op(self) -> dict[str, object]:
        mean = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        return {"op": "normalize", "mean": mean, "std": [1 / s for s in self.std]}


def output_size_of(transforms: Iterable[AnyTransform], size: Size | None = None) -> Size | None:
    """Return the (height, width) of the output for an input of ``size``; None when that depends on the image or is unknown."""
    for transform in transforms:
        size = _output_size(transform, size)
    return size


def _output_size(transform: AnyTransform, size: Size | None) -> Size | None:
    own = getattr(transform, "output_size", None)
    if own is not None:
        known: Size | None = own(size)
        return known
    if not isinstance(transform, v2.Transform):
        return None
    if isinstance(transform, (v2.Resize, v2.CenterCrop, v2.RandomCrop, v2.RandomResizedCrop)):
        pair = list(transform.size or [])
        return (pair[0], pair[1]) if len(pair) == 2 else None
    varies = (v2.Pad, v2.RandomZoomOut, v2.ScaleJitter, v2.RandomShortestSize, v2.RandomResize)
    return None if isinstance(transform, varies) or getattr(transform, "expand", False) else size
