"""Images with their inputs and outputs that travel with a package, so that any program can prove itself with them."""

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

FOLDER = "testvectors"
_SIDES = (97, 61)  # of the drawn images: odd, and of another aspect than any input


@dataclass(frozen=True)
class Vector:
    """One image (PNG) with its input (1, 3, H, W) and outputs (1, …)."""

    name: str
    image: bytes
    input: Floats
    outputs: Outputs

    def entry(self, tolerance: Tolerance) -> TestVector:
        """The vector in the words of the manifest."""
        path = f"{FOLDER}/{self.name}"
        ends = ["logits"] if len(self.outputs) == 1 else [f"output{number}" for number in range(len(self.outputs))]
        files = {name: f"{path}_{end}.npy" for name, end in zip(self.outputs, ends, strict=True)}
        return TestVector(image=f"{path}.png", input=f"{path}_input.npy", outputs=files, tol=tolerance)

    def members(self, entry: TestVector) -> dict[str, bytes]:
        """The files that ``entry`` names."""
        arrays = {entry.input: self.input, **{file: self.outputs[name] for name, file in entry.outputs.items()}}
        return {entry.image: self.image, **{file: npy(values) for file, values in arrays.items()}}


def members_of(vectors: Sequence[Vector], entries: Sequence[TestVector]) -> dict[str, bytes]:
    """The files of ``vectors``, which ``entries`` name."""
    return {name: data for vector, entry in zip(vectors, entries, strict=True) for name, data in vector.members(entry).items()}


def npy(values: Floats) -> bytes:
    """The bytes of a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values, dtype="<f4"), allow_pickle=False)
    return file.getvalue()


def from_npy(data: bytes, shape: tuple[int, ...], label: str) -> Floats:
    """The float32 values of a ``.npy`` file that must have ``shape``; its own word is not trusted with any memory."""
    if data[: len(expected := npy_header(shape))] != expected or len(data) != len(expected) + 4 * int(np.prod(shape)):
        raise PackageError(f"is not a float32 array of the shape {shape}", file=label)
    values: NDArray[np.float32] = np.frombuffer(data, dtype="<f4", offset=len(expected)).reshape(shape)
    return values


def npy_header(shape: tuple[int, ...]) -> bytes:
    """How a ``.npy`` file of float32 in this shape begins."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def drawn_images() -> list[tuple[str, bytes]]:
    """Two pictures that no data set need have: transparent, and turned by EXIF."""
    width, height = _SIDES
    rows, columns = np.mgrid[0:height, 0:width]
    levels = np.stack([columns * 255 // width, rows * 255 // height, columns * rows % 256, 255 - rows * 3], axis=-1)
    transparent = Image.fromarray(levels.astype(np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    transparent.convert("RGB").save(turned, "PNG", exif=exif)
    see_through = io.BytesIO()
    transparent.save(see_through, "PNG")
    return [("drawn_transparent", see_through.getvalue()), ("drawn_turned", turned.getvalue())]
