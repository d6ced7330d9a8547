"""Operations of Pillow, timm and torchvision on 8-bit RGB images, equal to the last bit and faster, by an extension in C.

An operation is compared with the library's on two small images when it is first used; where they differ, and where the extension
was not compiled, the library's is used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from timm.data import auto_augment as policies
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from up.data.records import Image
from up.data.transforms.image import MEAN_COLOUR, MEAN_GREY, tensor_of, with_pillow

try:
    from up.data import _pixels
    from up.data._pixels import jitter_as_torch
except ImportError:  # there was no compiler, or it was compiled before this version
    _pixels = None  # type: ignore[assignment]

Levels: TypeAlias = NDArray[np.uint8]  # (H, W, 3) in one piece
Operation: TypeAlias = Callable[..., Any]
"""An operation of a library: of an image in its form, and of numbers."""

_LEVELS = np.ascontiguousarray(np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (1, 256, 3)))


class Resample(TypedDict):
    """Keyword arguments of timm's geometric operations: Pillow's filter, or several to draw from, and the colour of new pixels."""

    resample: Resampling | Sequence[Resampling]
    fillcolor: tuple[int, ...]


class Kernel(NamedTuple):
    """An operation on levels, and numbers with which it is compared with the library's."""

    run: Callable[..., Levels]
    samples: Sequence[float | None]
    of_tensors: bool = False
    is_cheap: bool = False  # so that it does not pay to convert a Pillow image


def levels_of(image: Image) -> Levels | None:
    """Return the pixels of an 8-bit RGB image, not copied where its memory is channels-last; None for other images."""
    if _pixels is None:
        return None
    if isinstance(image, PILImage):
        return np.asarray(image) if image.mode == "RGB" else None
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        return None
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))


def like(image: Image, levels: Levels) -> Image:
    """Return levels in the form of ``image``: a Pillow image, or a tensor (3, H, W) of channels-last memory."""
    return pillow.fromarray(levels) if isinstance(image, PILImage) else tensor_of(levels)


def write_planes(image: torch.Tensor, result: torch.Tensor) -> None:
    """Write an image (C, H, W) into contiguous memory, quickly where its own is channels-last."""
    if _pixels is not None and image.shape[0] == 3 and image.dtype == torch.uint8 and not image.is_contiguous():
        levels = image.numpy().transpose(1, 2, 0)
        if levels.flags.c_contiguous:
            _pixels.planes(levels, result.numpy())
            return
    result.copy_(image)


def faster(operation: policies.AugmentOp) -> policies.AugmentOp:
    """Let an operation of timm take levels too, for ``by_timm``; its draws stay."""
    operation.aug_fn = partial(_on_levels, operation.aug_fn)
    return operation


def by_timm(operation: Operation, image: Image) -> Image:
    """Apply operations of timm that are ``faster``: to the levels of a tensor, or to a Pillow image."""
    levels = None if isinstance(image, PILImage) else levels_of(image)
    if levels is not None:
        changed = operation(levels)
        return image if changed is levels else like(image, changed)
    return with_pillow(lambda own: _as_pillow(operation(own)), image)


def _as_pillow(image: Levels | PILImage) -> PILImage:
    return image if isinstance(image, PILImage) else pillow.fromarray(image)


def _on_levels(operation: Operation, image: Levels | PILImage, *numbers: float, **kwargs: object) -> Levels | PILImage:
    """Apply an operation of timm. A Pillow image becomes levels where that is faster."""
    kernel = KERNELS[operation] if operation in KERNELS and agrees(operation) else None
    if isinstance(image, PILImage) and (kernel is None or kernel.is_cheap or image.mode != "RGB"):
        if image.mode == "L" and "fillcolor" in kwargs:
            kwargs["fillcolor"] = MEAN_GREY
        changed: PILImage = operation(image, *numbers, **kwargs)
        return changed
    if kernel is None:
        return np.array(operation(pillow.fromarray(image), *numbers, **kwargs))
    return kernel.run(np.asarray(image), *numbers, **kwargs)


def jittered(jitter: v2.ColorJitter, image: Image) -> Image:
    """Apply torchvision's jitter of colours, with its draws."""
    operations = _JITTER_OF_PILLOW if isinstance(image, PILImage) else _JITTER_OF_TENSORS
    levels = levels_of(image)
    if levels is None or not all(map(agrees, operations)):
        changed: Image = jitter(image)
        return changed
    drawn = jitter.make_params([image])
    factors = [drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]
    steps = [(number, factors[number]) for number in drawn["fn_idx"].tolist() if factors[number] is not None]
    if operations is _JITTER_OF_TENSORS:
        return like(image, _jitter_as_torch(levels, *steps)) if steps else image
    for number, factor in steps:
        levels = KERNELS[operations[number]].run(levels, factor)
    return like(image, levels)


@cache
def agrees(operation: Operation) -> bool:
    """Compare the kernel of an operation with the library, on noise and on a gradient; False without the extension."""
    if _pixels is None:
        return False
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (37, 45, 3), dtype=np.uint8)
    gradient = (np.add.outer(np.arange(37), np.arange(45))[..., None] * np.array([1, 2, 3])).astype(np.uint8)
    kernel = KERNELS[operation]
    forms = [torch.empty(0) if kernel.of_tensors else pillow.new("RGB", (1, 1))]
    filters = [{"resample": each, "fillcolor": MEAN_COLOUR} for each in (Resampling.BILINEAR, Resampling.BICUBIC)]
    for image in (noise, gradient):
        for sample in kernel.samples:
            numbers = () if sample is None else (sample,)
            for kwargs in [{}] if kernel.of_tensors else filters:
                expected = levels_of(operation(like(forms[0], image), *numbers, **kwargs))
                if expected is None or not np.array_equal(kernel.run(image, *numbers, **kwargs), expected):
                    return False
    return True


def _table(operation: Operation, *numbers: float) -> bytes:
    """Return what an operation of timm that knows one level at a time makes of each."""
    return np.asarray(operation(pillow.fromarray(_LEVELS), *numbers)).transpose(2, 0, 1).tobytes()


_kept_table = lru_cache(1024)(_table)  # of whole numbers


def _looked_up(levels: Levels, tables: bytes) -> Levels:
    result = np.empty_like(levels)
    _pixels.lookup(levels, result, tables)
    return result


def _by_table(operation: Operation, samples: Sequence[float | None]) -> Kernel:
    def run(levels: Levels, *numbers: float, **_: object) -> Levels:
        return _looked_up(levels, _kept_table(operation, *numbers))

    return Kernel(run, samples, is_cheap=True)


def _brightness(levels: Levels, factor: float, **_: object) -> Levels:
    return _looked_up(levels, _table(policies.brightness, factor))


def _contrast(levels: Levels, factor: float, **_: object) -> Levels:
    mean = int(_pixels.luma_sum(levels) / (levels.size // 3) + 0.5)
    blended = pillow.blend(pillow.new("RGB", (256, 1), (mean, mean, mean)), pillow.fromarray(_LEVELS), factor)
    return _looked_up(levels, np.asarray(blended).transpose(2, 0, 1).tobytes())


def _color(levels: Levels, factor: float, **_: object) -> Levels:
    result = np.empty_like(levels)
    _pixels.color(levels, result, factor)
    return result


def _sharpness(levels: Levels, factor: float, **_: object) -> Levels:
    result = np.empty_like(levels)
    _pixels.sharpness(levels, result, levels.shape[1], factor)
    return result


def _auto_contrast(levels: Levels, **_: object) -> Levels:
    result = np.empty_like(levels)
    _pixels.autocontrast(levels, result)
    return result


def _equalize(levels: Levels, **_: object) -> Levels:
    result = np.empty_like(levels)
    _pixels.equalize(levels, result)
    return result


def _moved(levels: Levels, matrix: Sequence[float], **how: Unpack[Resample]) -> Levels:
    resample = how["resample"]
    # timm draws one of several filters, also where it has none to choose from
    chosen = random.choice(resample) if isinstance(resample, list | tuple) else resample
    result = np.empty_like(levels)
    _pixels.transform(levels, result, levels.shape[1], matrix, how["fillcolor"], chosen == Resampling.BICUBIC)
    return result


def _shear_x(levels: Levels, factor: float, **how: Unpack[Resample]) -> Levels:
    return _moved(levels, (1, factor, 0, 0, 1, 0), **how)


def _shear_y(levels: Levels, factor: float, **how: Unpack[Resample]) -> Levels:
    return _moved(levels, (1, 0, 0, factor, 1, 0), **how)


def _translate_x(levels: Levels, pixels: float, **how: Unpack[Resample]) -> Levels:
    return _moved(levels, (1, 0, pixels, 0, 1, 0), **how)


def _translate_y(levels: Levels, pixels: float, **how: Unpack[Resample]) -> Levels:
    return _moved(levels, (1, 0, 0, 0, 1, pixels), **how)


def _translate_x_rel(levels: Levels, share: float, **how: Unpack[Resample]) -> Levels:
    return _translate_x(levels, share * levels.shape[1], **how)


def _translate_y_rel(levels: Levels, share: float, **how: Unpack[Resample]) -> Levels:
    return _translate_y(levels, share * levels.shape[0], **how)


def _rotate(levels: Levels, degrees: float, **how: Unpack[Resample]) -> Levels:
    if degrees % 90 == 0:  # Pillow moves whole pixels
        return np.array(policies.rotate(pillow.fromarray(levels), degrees, **how))
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = levels.shape[1] / 2, levels.shape[0] / 2
    right, down = cos * -x + sin * -y + 0.0, -sin * -x + cos * -y + 0.0
    return _moved(levels, (cos, sin, right + x, -sin, cos, down + y), **how)


def _jitter_as_torch(levels: Levels, *steps: tuple[int, float]) -> Levels:
    """Apply operations by their numbers in torchvision's order, each with its factor."""
    result = np.empty_like(levels)
    jitter_as_torch(levels, result, steps)
    return result


def _of_torch(number: int, samples: Sequence[float]) -> Kernel:
    return Kernel(lambda levels, factor: _jitter_as_torch(levels, (number, factor)), samples, of_tensors=True)


def _hue(levels: Levels, turn: float, **_: object) -> Levels:
    result = np.empty_like(levels)
    _pixels.hue(levels, result, int(turn * 255))
    return result


def _pillow_hue(image: PILImage, turn: float, **_: object) -> PILImage:
    changed: PILImage = F.adjust_hue(image, turn)
    return changed


# in torchvision's order; for Pillow images it calls what timm calls, too
_JITTER_OF_PILLOW = (policies.brightness, policies.contrast, policies.color, _pillow_hue)
_JITTER_OF_TENSORS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
_TURNS = (-0.5, -0.1, 0.0, 0.037, 0.5)
_FACTORS = (0.0, 0.1, 0.37, 1.0, 1.63, 1.9)
KERNELS: Mapping[Operation, Kernel] = {
    policies.auto_contrast: Kernel(_auto_contrast, [None]),
    policies.equalize: Kernel(_equalize, [None]),
    policies.invert: _by_table(policies.invert, [None]),
    policies.posterize: _by_table(policies.posterize, [1, 4, 8]),
    policies.solarize: _by_table(policies.solarize, [0, 77, 256]),
    policies.solarize_add: _by_table(policies.solarize_add, [0, 77]),
    policies.color: Kernel(_color, _FACTORS),
    policies.contrast: Kernel(_contrast, _FACTORS),
    policies.brightness: Kernel(_brightness, _FACTORS),
    policies.sharpness: Kernel(_sharpness, _FACTORS),
    policies.rotate: Kernel(_rotate, [-21.0, 7.3, 180.0]),
    policies.shear_x: Kernel(_shear_x, [-0.21, 0.123]),
    policies.shear_y: Kernel(_shear_y, [-0.21, 0.123]),
    policies.translate_x_abs: Kernel(_translate_x, [-7.0, 3.3]),
    policies.translate_y_abs: Kernel(_translate_y, [-7.0, 3.3]),
    policies.translate_x_rel: Kernel(_translate_x_rel, [-0.315, 0.1]),
    policies.translate_y_rel: Kernel(_translate_y_rel, [-0.315, 0.1]),
    _pillow_hue: Kernel(_hue, _TURNS),
    F.adjust_brightness: _of_torch(0, _FACTORS),
    F.adjust_contrast: _of_torch(1, _FACTORS),
    F.adjust_saturation: _of_torch(2, _FACTORS),
    F.adjust_hue: _of_torch(3, _TURNS),
}
"""Kernels by the function of timm or torchvision whose results they give."""
