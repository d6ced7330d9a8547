"""From an image to the input of a graph, by the manifest alone: Pillow and numpy, and the numbers of training to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.bundle.answers.answer import Floats
from up.bundle.operations import Alpha, CenterCrop, Decode, Normalize, Operation, Placement, Resize, ToFloat, placement_of
from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS, Color, read_rgb, upright_rgb
from up.data.geometry import center_corner

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"


class Preprocessing:
    """Calling it with a path, encoded bytes, a Pillow image or levels (H, W, 3) gives float32 (3, H, W).

    Raises ``BadImage`` for what cannot be read, or does not come out at ``size`` (height, width).
    """

    def __init__(self, operations: Sequence[Operation], size: tuple[int, int]) -> None:
        self.size = size
        self._operations = operations
        self._decode = next(op for op in operations if isinstance(op, Decode))
        self.background = _background(operations)
        self._shape = [_STEPS[type(op)](op) for op in operations if type(op) in _STEPS]
        self._numbers = [op for op in operations if isinstance(op, (ToFloat, Normalize))]

    def __call__(self, source: ImageSource) -> Floats:
        return self.placed(source)[0]

    def placed(self, source: ImageSource) -> tuple[Floats, Placement]:
        """The input, and where the image is in it."""
        name, image = self._opened(source)
        placement = placement_of(self._operations, (image.height, image.width))
        levels = np.asarray(self._shaped(name, image))
        if self._decode.color == "BGR":
            levels = levels[..., ::-1]
        return _as_numbers(np.ascontiguousarray(levels.transpose(2, 0, 1)), self._numbers), placement

    def _shaped(self, name: str, image: Image.Image) -> Image.Image:
        for step in self._shape:
            try:
                image = step(image)
            except _TooNarrow as error:
                raise BadImage(name, str(error)) from None
        if (image.height, image.width) != self.size:
            height, width = self.size
            raise BadImage(name, f"comes out at {image.width} x {image.height} pixels, the graph takes {width} x {height}")
        return image

    def _opened(self, source: ImageSource) -> tuple[str, Image.Image]:
        """A name for errors, and the upright RGB image."""
        if isinstance(source, (str, Path, bytes)):
            name = "image" if isinstance(source, bytes) else str(source)
            # A relative path stays relative in what the user reads, but is found whatever the folder is by then.
            read = source if isinstance(source, bytes) else str(Path(source).absolute())
            return name, read_rgb(read, name, max_pixels=self._decode.max_pixels, background=self.background)
        if isinstance(source, Image.Image):
            try:
                return "image", upright_rgb(source, self.background)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes a file that it opened only now
                raise BadImage("image", f"cannot be decoded: {error}") from None
        if not isinstance(source, np.ndarray):
            raise TypeError(f"{type(source).__name__} is no image: expected a path, encoded bytes, a Pillow image or a numpy array")
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise BadImage("image", f"an array {source.dtype} {source.shape}; expected levels, uint8 (height, width, 3) in RGB")
        return "image", Image.fromarray(np.ascontiguousarray(source))


class _TooNarrow(ValueError):
    """An image that memory cannot hold once its shorter side has grown."""


def _background(operations: Sequence[Operation]) -> Color | None:
    """What transparent pixels are composited over; None where the alpha channel is ignored."""
    for op in operations:
        if isinstance(op, Alpha) and op.background is not None:
            red, green, blue = op.background
            return red, green, blue
    return None


def _as_numbers(levels: NDArray[np.uint8], operations: Sequence[ToFloat | Normalize]) -> Floats:
    """float32 (3, H, W) of levels (3, H, W).

    Training does a closing to_float and normalize on the device as one multiplication and one addition, and anything
    else one by one; the same is done here, so that every bit is the same.
    """
    values: Floats = levels.astype(np.float32)
    last = list(operations[-2:])
    if len(last) == 2 and isinstance(last[0], ToFloat) and isinstance(last[1], Normalize):
        return _fused(_one_by_one(values, operations[:-2]), last[0].divide_by, last[1])
    return _one_by_one(values, operations)


def _one_by_one(values: Floats, operations: Sequence[ToFloat | Normalize]) -> Floats:
    for op in operations:
        if isinstance(op, ToFloat):
            values /= np.float32(op.divide_by)
        else:
            values -= _by_channel(np.array(op.mean))
            values /= _by_channel(np.array(op.std))
    return values


def _fused(values: Floats, divide_by: float, op: Normalize) -> Floats:
    top = 255 / divide_by  # what level 255 becomes
    mean, std = np.array(op.mean) / top, np.array(op.std) / top
    values *= _by_channel(1 / (255 * std))
    values += _by_channel(-mean / std)
    return values


def _by_channel(values: NDArray[np.float64]) -> Floats:
    return values.astype(np.float32)[:, None, None]


def _resize(op: Resize) -> Callable[[Image.Image], Image.Image]:
    resample = Image.Resampling[op.interpolation.upper()]

    def resized(image: Image.Image) -> Image.Image:
        size = op.output_size(image.height, image.width)
        if size[0] * size[1] > 2 * MAX_PIXELS:
            given = f"{image.width:,} x {image.height:,}"
            raise _TooNarrow(f"so narrow ({given}) that it would grow to {size[1]:,} x {size[0]:,} pixels")
        if size == (image.height, image.width):
            return image
        return image.resize(size[::-1], resample)

    return resized


def _center_crop(op: CenterCrop) -> Callable[[Image.Image], Image.Image]:
    height, width = op.size

    def cropped(image: Image.Image) -> Image.Image:
        top, left = center_corner((image.height, image.width), (height, width))  # Pillow surrounds a smaller image with black
        return image.crop((left, top, left + width, top + height))

    return cropped


_STEPS: dict[type, Callable[[Any], Callable[[Image.Image], Image.Image]]] = {Resize: _resize, CenterCrop: _center_crop}
