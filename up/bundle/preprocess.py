"""From an image to the input of a graph, by the manifest alone: Pillow and numpy, with training's values to the bit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.bundle.answers.answer import Floats
from up.bundle.operations import (
    CenterCropOperation,
    DecodeOperation,
    NormalizeOperation,
    Operation,
    Placement,
    ResizeOperation,
    ToFloatOperation,
    background_of,
    decode_of,
    placement_of,
)
from up.data.bad_images import BadImage
from up.data.channels import read_channels
from up.data.decoding import MAX_PIXELS, read_rgb, upright_rgb
from up.data.geometry import center_corner

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"


class Preprocessing:
    """Preprocessing by the operations of a manifest: call it with an image for its float32 (C, H, W).

    Images are paths, encoded bytes, Pillow images, or levels: (H, W, 3) in RGB, or (C, H, W) for channels as stored. Raises
    ``BadImage`` for those that cannot be read, or do not come out at ``size`` (height, width).
    """

    def __init__(self, operations: Sequence[Operation], size: tuple[int, int]) -> None:
        self.size, self._operations = size, operations
        self._decode = decode_of(operations)
        self._background = background_of(operations)
        self._numbers = [op for op in operations if isinstance(op, (ToFloatOperation, NormalizeOperation))]

    def __call__(self, source: ImageSource) -> Floats:
        return self.placed(source)[0]

    def placed(self, source: ImageSource) -> tuple[Floats, Placement]:
        """Return the input, and the position of the image in it."""
        name = "image" if isinstance(source, bytes) or not isinstance(source, (str, Path)) else str(source)
        bands = self._opened(source, name)
        placement = placement_of(self._operations, (bands[0].height, bands[0].width))
        pixels = np.concatenate([_channels_first(self._shaped(name, band)) for band in bands])
        if self._decode.color == "BGR":
            pixels = pixels[::-1]
        return _as_numbers(np.ascontiguousarray(pixels), self._numbers), placement

    def image(self, source: ImageSource) -> Image.Image:
        """Open an image in RGB, to draw on; channels as stored are shown by the first three, or the first as grey."""
        bands = self._opened(source, str(source))
        if self._decode.color != "stored":
            return bands[0].convert("RGB")
        shown = bands[:3] if len(bands) >= 3 else bands[:1] * 3
        levels = [np.clip(255 * np.asarray(band), 0, 255).astype(np.uint8) for band in shown]
        return Image.fromarray(np.stack(levels, axis=-1))

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

    def _opened(self, source: ImageSource, name: str) -> list[Image.Image]:
        """Return the upright image, of 8 bits in RGB or grey; for channels as stored one image of floats for each channel."""
        decode = self._decode
        # A relative path stays relative in messages, but is found even if the working folder changes meanwhile.
        read = str(Path(source).absolute()) if isinstance(source, (str, Path)) else source
        if decode.color == "stored":
            channels = _levels_of(read, name, decode)
            return [Image.fromarray(channel) for channel in channels]
        if isinstance(read, (str, bytes)):
            image = read_rgb(read, name, max_pixels=decode.max_pixels, background=self._background)
        elif isinstance(read, Image.Image):
            try:
                image = upright_rgb(read, self._background)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes a file that it opened only now
                raise BadImage(name, f"cannot be decoded: {error}") from None
        else:
            image = Image.fromarray(np.ascontiguousarray(_levels(read, name)))
        return [image.convert("L") if decode.color == "GRAY" else image]


def _levels(source: object, name: str) -> NDArray[np.uint8]:
    """Return the levels (H, W, 3) of an array. Raises ``BadImage`` for other arrays, ``TypeError`` for other objects."""
    if not isinstance(source, np.ndarray):
        raise TypeError(f"{type(source).__name__} is not an image: expected a path, encoded bytes, a Pillow image or a numpy array")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise BadImage(name, f"an array {source.dtype} {source.shape}; expected levels, uint8 (height, width, 3) in RGB")
    return source


def _levels_of(source: str | bytes | Image.Image | NDArray[np.generic], name: str, decode: DecodeOperation) -> Floats:
    """Return floats (C, H, W) of a file, a Pillow image or an array, in the depth that it has."""
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        source.save(file, "TIFF")  # lossless in every depth
        source = file.getvalue()
    elif isinstance(source, np.ndarray):
        file = io.BytesIO()
        np.save(file, source, allow_pickle=False)
        source = file.getvalue()
    return read_channels(source, name, channels=decode.channels, max_level=decode.max_level, max_pixels=decode.max_pixels)


def _channels_first(image: Image.Image) -> NDArray[np.generic]:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _as_numbers(pixels: NDArray[np.generic], operations: Sequence[ToFloatOperation | NormalizeOperation]) -> Floats:
    """Convert levels or floats (C, H, W) to the input in float32.

    Training does a closing to_float and normalize of levels on the device as one multiplication and one addition, and anything
    else one by one; the same is done here, so that every bit is equal.
    """
    values: Floats = pixels.astype(np.float32)
    fused = []
    match operations:
        case [*_, ToFloatOperation() as to_float, NormalizeOperation() as normalize] if pixels.dtype == np.uint8:
            operations = operations[:-2]
            top = 255 / to_float.divide_by  # level 255 afterwards
            mean, std = np.array(normalize.mean) / top, np.array(normalize.std) / top
            fused = [(np.multiply, 1 / (255 * std)), (np.add, -mean / std)]
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
