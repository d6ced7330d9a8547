"""Images with their inputs and outputs that travel with a package, so that any program can check itself with them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.bundle.answers import Floats, Outputs
from up.bundle.archive import PackageError
from up.bundle.manifest import TestVector, Tolerance
from up.bundle.operations import DecodeOperation

FOLDER = "testvectors"
NUMPY = b"\x93NUMPY"
_SIDES = (97, 61)  # of the drawn images: odd, and of another aspect than any input


@dataclass(frozen=True)
class Vector:
    """An image (PNG, or .npy) with its input (1, C, H, W) and outputs (1, …)."""

    name: str
    image: bytes
    input: Floats
    outputs: Outputs

    def entry(self, tolerance: Tolerance) -> TestVector:
        """Describe the vector for the manifest."""
        path = f"{FOLDER}/{self.name}"
        ends = ["logits"] if len(self.outputs) == 1 else [f"output{number}" for number in range(len(self.outputs))]
        files = {name: f"{path}_{end}.npy" for name, end in zip(self.outputs, ends, strict=True)}
        suffix = "npy" if self.image.startswith(NUMPY) else "png"
        return TestVector(image=f"{path}.{suffix}", input=f"{path}_input.npy", outputs=files, tol=tolerance)


def members_of(vectors: Sequence[Vector], entries: Sequence[TestVector]) -> dict[str, bytes]:
    """Encode ``vectors`` as the files that ``entries`` name."""
    members: dict[str, bytes] = {}
    for vector, entry in zip(vectors, entries, strict=True):
        arrays = {entry.input: vector.input, **{file: vector.outputs[name] for name, file in entry.outputs.items()}}
        members |= {entry.image: vector.image, **{file: npy(values) for file, values in arrays.items()}}
    return members


def npy(values: NDArray[np.floating]) -> bytes:
    """Encode an array as a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values, dtype="<f4"), allow_pickle=False)
    return file.getvalue()


def from_npy(data: bytes, shape: tuple[int, ...], label: str) -> Floats:
    """Decode the float32 values of a ``.npy`` file that must have ``shape``; the shape that it claims is not trusted."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    expected = header.getvalue()
    if not data.startswith(expected) or len(data) != len(expected) + 4 * int(np.prod(shape)):
        raise PackageError(f"is not a float32 array of the shape {shape}", file=label)
    values: NDArray[np.float32] = np.frombuffer(data, dtype="<f4", offset=len(expected)).reshape(shape)
    return values


def drawn_images(decode: DecodeOperation | None = None) -> list[tuple[str, bytes]]:
    """Draw two images that a data set may lack: a transparent one, and one turned by EXIF; for channels as stored, a gradient."""
    width, height = _SIDES
    rows, columns = np.mgrid[0:height, 0:width]
    if decode is not None and decode.color == "stored":
        return [("drawn_gradient", npy(np.stack([(rows + at * columns) % 97 / 96 for at in range(decode.channels)])))]
    levels = np.stack([columns * 255 // width, rows * 255 // height, columns * rows % 256, 255 - rows * 3], axis=-1)
    transparent = Image.fromarray(levels.astype(np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    return [("drawn_transparent", encoded_png(transparent)), ("drawn_turned", encoded_png(transparent.convert("RGB"), exif=exif))]


def encoded_png(image: Image.Image, **options: object) -> bytes:
    """Encode a PNG; equal images give equal bytes."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()
