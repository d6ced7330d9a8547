"""From an image to the input of a graph, by the manifest alone: Pillow and numpy, with training's values to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.bundle.answers.answer import Floats
from up.bundle.operations import (
    AlphaOperation,
    CenterCropOperation,
    NormalizeOperation,
    Operation,
    Placement,
    ResizeOperation,
    ToFloatOperation,
    decode_of,
    placement_of,
)
from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS, Color, read_rgb, upright_rgb
from up.data.geometry import center_corner

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"


class Preprocessing:
    """Preprocessing by the operations of a manifest: call it with an image for its float32 (3, H, W).

    Images are paths, encoded bytes, Pillow images, or levels (H, W, 3). Raises ``BadImage`` for those that cannot be read, or
    do not come out at ``size`` (height, width).
    """

    def __init__(self, operations: Sequence[Operation], size: tuple[int, int]) -> None:
        self.size, self._operations = size, operations
        self._decode = decode_of(operations)
        backgrounds = (op.background for op in operations if isinstance(op, AlphaOperation) and op.background is not None)
        self.background: Color | None = next(((red, green, blue) for red, green, blue in backgrounds), None)
        self._numbers = [op for op in operations if isinstance(op, (ToFloatOperation, NormalizeOperation))]

    def __call__(self, source: ImageSource) -> Floats:
        return self.placed(source)[0]

    def placed(self, source: ImageSource) -> tuple[Floats, Placement]:
        """Return the input, and the position of the image in it."""
        name, image = self._opened(source)
        placement = placement_of(self._operations, (image.height, image.width))
        levels = np.asarray(self._shaped(name, image))
        if self._decode.color == "BGR":
            levels = levels[..., ::-1]
        return _as_numbers(np.ascontiguousarray(levels.transpose(2, 0, 1)), self._numbers), placement

    def _shaped(self, name: str, image: Image.Image) -> Image.Image:
        for op in self._operations:
            if isinstance(op, ResizeOperation):
                height, width = op.output_size(image.height, image.width)
                if height * width > 2 * MAX_PIXELS:
                    given = f"{image.width:,} x {image.height:,}"
                    raise BadImage(name, f"so narrow ({given}) that it would grow to {width:,} x {height:,} pixels")
                if (width, height) != image.size:
                    image = image.resize((width, height), Image.Resampling[op.interpolation.upper()])
            elif isinstance(op, CenterCropOperation):
                height, width = op.size
                top, left = center_corner((image.height, image.width), (height, width))  # Pillow pads a smaller image with black
                image = image.crop((left, top, left + width, top + height))
        if (image.height, image.width) != self.size:
            height, width = self.size
            raise BadImage(name, f"comes out at {image.width} x {image.height} pixels, the graph takes {width} x {height}")
        return image

    def _opened(self, source: ImageSource) -> tuple[str, Image.Image]:
        """Return a name for errors, and the upright RGB image."""
        if isinstance(source, (str, Path, bytes)):
            name = "image" if isinstance(source, bytes) else str(source)
            # A relative path stays relative in messages, but is found even if the working folder changes meanwhile.
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


def _as_numbers(levels: NDArray[np.uint8], operations: Sequence[ToFloatOperation | NormalizeOperation]) -> Floats:
    """Convert levels (3, H, W) to float32.

    Training does a closing to_float and normalize on the device as one multiplication and one addition, and anything
    else one by one; the same is done here, so that every bit is equal.
    """
    values: Floats = levels.astype(np.float32)
    match operations:
        case [*operations, ToFloatOperation() as to_float, NormalizeOperation() as normalize]:
            top = 255 / to_float.divide_by  # level 255 afterwards
            mean, std = np.array(normalize.mean) / top, np.array(normalize.std) / top
            fused = [(np.multiply, 1 / (255 * std)), (np.add, -mean / std)]
        case _:
            fused = []
    for op in operations:
        if isinstance(op, ToFloatOperation):
            values /= np.float32(op.divide_by)
        else:
            values -= _by_channel(np.array(op.mean))
            values /= _by_channel(np.array(op.std))
    for apply, numbers in fused:
        apply(values, _by_channel(numbers), out=values)
    return values


def _by_channel(values: NDArray[np.float64]) -> Floats:
    return values.astype(np.float32)[:, None, None]
