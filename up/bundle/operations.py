"""The operations of the manifest, from an image file to the input of a graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from up.data.geometry import center_corner
from up.types import Json

AtLeast1 = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=1 << 14)]  # pixels: a package must not ask for any amount of memory
Pair = Annotated[list[Side], Field(min_length=2, max_length=2)]
Channels = Annotated[int, Field(ge=1, le=256)]
OfChannels = Annotated[list[float], Field(min_length=1, max_length=256)]
OfChannelsAbove0 = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=256)]

# Reading the docstrings of fields takes longer than all the rest of a prediction's start: only the schema has them.
_FOR_SCHEMA = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "") == "up.bundle.manifest"


class Entry(BaseModel):
    """Base of all parts of the manifest: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=_FOR_SCHEMA,
        protected_namespaces=(),
        defer_build=True,
    )


ChannelOrder = Literal["RGB", "BGR", "GRAY", "stored"]


class _Sparse(Entry):
    @model_serializer(mode="wrap")
    def _as_older_versions_read_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Leave out empty keys: older versions reject those that they do not know."""
        plain: dict[str, Json] = handler(self)
        return {key: value for key, value in plain.items() if value is not None}


class DecodeOperation(_Sparse):
    """File to pixels: JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, JPEG 2000; of several frames the first.

    With ``color: stored`` also arrays (.npy) and TIFF with a page for each channel.
    """

    op: Literal["decode"] = "decode"
    color: ChannelOrder
    """Order of the channels; grey, palette and CMYK images are converted too. GRAY: one channel, the luma of ITU-R 601-2;
    stored: the channels of the file."""
    depth: Literal["high_byte", "full"] = "high_byte"
    """high_byte: 16 bits a channel become 8 by keeping the high byte. full, for ``stored``: integers become floats, divided by
    ``max_level``; floats stay unchanged."""
    max_pixels: AtLeast1
    """Largest number of pixels of an image."""
    stored_channels: Channels | None = None
    """Number of channels for ``stored``; left out for others."""
    max_level: Annotated[float, Field(gt=0)] | None = None
    """Level that becomes 1 for ``full``; left out for the largest of the file's type, 255 or 65535."""

    @model_validator(mode="after")
    def _color_fits(self) -> DecodeOperation:
        if (self.color == "stored") != (self.stored_channels is not None) or (self.color == "stored") != (self.depth == "full"):
            expected = "stored_channels and depth full for color stored alone"
            raise ValueError(
                f"color is {self.color}, stored_channels {self.stored_channels}, depth {self.depth}: expected {expected}"
            )
        return self

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.stored_channels or (1 if self.color == "GRAY" else 3)


class ExifOperation(Entry):
    """Orientation in EXIF."""

    op: Literal["exif"] = "exif"
    orientation: Literal["apply"] = "apply"
    """The image is turned upright."""


class AlphaOperation(_Sparse):
    """Transparency."""

    op: Literal["alpha"] = "alpha"
    mode: Literal["drop", "composite"] = "drop"
    """``drop``: the colours as they are stored; ``composite``: laid over ``background``, in 8 bits."""
    background: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] | None = None
    """[red, green, blue] from 0 to 255, whatever the order of the channels; left out for ``drop``."""

    @model_validator(mode="after")
    def _background_fits(self) -> AlphaOperation:
        if (self.mode == "composite") != (self.background is not None):
            raise ValueError(f"mode is {self.mode}, background {self.background}: expected [red, green, blue] for composite alone")
        return self


class ResizeOperation(Entry):
    """Resizing as by Pillow: of 8-bit levels, or of floats, channel by channel."""

    op: Literal["resize"] = "resize"
    mode: Literal["short_side", "exact"]
    """``short_side``: the shorter side becomes ``size`` and the aspect stays; ``exact``: height and width do."""
    size: Side | Pair
    """Pixels: one number for ``short_side``, [height, width] for ``exact``."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    antialias: bool
    """Whether the filter widens with the scale when the image shrinks; false only for ``nearest``."""
    rounding: Literal["floor"] = "floor"
    """Rounding of the longer side."""

    @model_validator(mode="after")
    def _size_fits(self) -> ResizeOperation:
        if (self.mode == "short_side") != isinstance(self.size, int):
            raise ValueError(f"size is {self.size}: expected one number for short_side, [height, width] for exact")
        return self

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a resized image."""
        if not isinstance(self.size, int):
            return self.size[0], self.size[1]
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)


class CenterCropOperation(Entry):
    """Crop of the middle of the image."""

    op: Literal["center_crop"] = "center_crop"
    size: Pair
    """[height, width] in pixels."""
    rounding: Literal["half_even"] = "half_even"
    """Rounding of the corner, (image - crop) / 2."""
    pad: Literal[0] = 0
    """Level that pads a smaller image, the odd pixel at the right and the bottom."""


class ToFloatOperation(Entry):
    """8-bit levels, or floats of ``depth: full``, to float32."""

    op: Literal["to_float"] = "to_float"
    divide_by: Annotated[float, Field(gt=0)]
    """255 for values within 0..1; 1 where they are already."""


class NormalizeOperation(Entry):
    """``(x - mean) / std`` for each channel, in the order of ``channel_order``."""

    op: Literal["normalize"] = "normalize"
    mean: OfChannels
    std: OfChannelsAbove0


class LayoutOperation(Entry):
    """Rows, columns, channels to channels, rows, columns."""

    op: Literal["layout"] = "layout"
    to: Literal["CHW"] = "CHW"


Operation = Annotated[
    DecodeOperation
    | ExifOperation
    | AlphaOperation
    | ResizeOperation
    | CenterCropOperation
    | ToFloatOperation
    | NormalizeOperation
    | LayoutOperation,
    Field(discriminator="op"),
]


def input_size_of(operations: Sequence[Operation]) -> tuple[int, int] | None:
    """Return (height, width) of the result for images of any size; None if it depends on theirs."""
    size: tuple[int, int] | None = None
    for op in operations:
        if isinstance(op, CenterCropOperation):
            size = op.size[0], op.size[1]
        elif isinstance(op, ResizeOperation) and (size is not None or op.mode == "exact"):
            size = op.output_size(*(size or (1, 1)))
    return size


class Placement(NamedTuple):
    """Position of an image in the input of a graph: its pixel (y, x) is at ``(y, x) * scale + offset`` of the input."""

    size: tuple[int, int]
    """(height, width) of the image."""
    scale: tuple[float, float]
    offset: tuple[float, float]
    input_size: tuple[int, int]
    """(height, width) of the input."""

    def on_image(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """Convert a box (left, top, right, bottom) of the input to pixels of the image, clipped at its edges."""
        left, top, right, bottom = (
            min(max((side - self.offset[axis]) / self.scale[axis], 0.0), float(self.size[axis]))
            for side, axis in zip(box, (1, 0, 1, 0), strict=True)
        )
        return left, top, right, bottom


def placement_of(operations: Sequence[Operation], size: tuple[int, int]) -> Placement:
    """Return the placement of an image of ``size`` (height, width) by the operations."""
    now, scale, offset = size, (1.0, 1.0), (0.0, 0.0)
    for op in operations:
        if isinstance(op, ResizeOperation):
            larger = op.output_size(*now)
            factors = larger[0] / now[0], larger[1] / now[1]
            scale = scale[0] * factors[0], scale[1] * factors[1]
            offset = offset[0] * factors[0], offset[1] * factors[1]
            now = larger
        elif isinstance(op, CenterCropOperation):
            crop = op.size[0], op.size[1]
            top, left = center_corner(now, crop)
            offset = offset[0] - top, offset[1] - left
            now = crop
    return Placement(size, scale, offset, now)


def decode_of(operations: Sequence[Operation]) -> DecodeOperation:
    """Return the operation that opens a file."""
    return next(op for op in operations if isinstance(op, DecodeOperation))


def background_of(operations: Sequence[Operation]) -> tuple[int, int, int] | None:
    """Return the background (red, green, blue) of transparent pixels; None if the alpha channel is dropped."""
    given = (op.background for op in operations if isinstance(op, AlphaOperation) and op.background is not None)
    return next(((red, green, blue) for red, green, blue in given), None)


def pixel_affine(operations: Sequence[Operation]) -> tuple[list[float], list[float]]:
    """Return ``mean`` and ``std`` (C,) in levels: the input is (level - mean) / std."""
    channels = decode_of(operations).channels
    mean, std = [0.0] * channels, [1.0] * channels
    for op in operations:
        if isinstance(op, ToFloatOperation):
            std = [value * op.divide_by for value in std]
        elif isinstance(op, NormalizeOperation):
            mean = [m + s * shift for m, s, shift in zip(mean, std, op.mean, strict=True)]
            std = [s * scale for s, scale in zip(std, op.std, strict=True)]
    return mean, std
