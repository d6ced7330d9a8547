"""Records of image files: hash, header and thumbnail of each, by which duplicates are found and faults reported.

Training, `up data check`, `up data split` and the automatic split of `up finetune` use these records and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.data.bad_images import BadImage
from up.data.decoding import MAX_PIXELS, QUIET, decoding, open_image, upright_rgb
from up.data.loader import Workers, fetched
from up.data.records import Batch, Sample, SampleKey
from up.data.sampler import EvalBatches
from up.processors import available_processors

Track = Callable[[Iterable[Batch], int], Iterable[Batch]]  # yields batches unchanged and shows the progress
Fault = Literal["", "missing", "empty", "truncated", "unreadable"]
Read = Callable[[str], "Image.Image | NDArray[np.uint8]"]

SIDE = 12  # pixels of a thumbnail
_FLAT = 2.0  # levels: an image whose colours all vary less shows nothing that could be compared
_TINY = 8  # pixels: of a smaller image the thumbnail is mostly interpolation
_STEPS = 24  # of a standard deviation; dot products of such integers are exact in float32, in any order of the sum
_READ_AT = 64  # pixels that a JPEG is decoded to at least, which is much quicker than in full
_BATCH = 32  # images that a worker sends at a time
_FEW = 256  # images that are read without worker processes
_WHOLE, _BLOCK = 1 << 16, 1 << 14  # bytes of a file that is hashed whole, and of each of the three blocks of a larger one


class ImageRecord(NamedTuple):
    """Record of an image file.

    ``sha256`` is empty where the file cannot be opened as an image. ``hashes`` are dHash of 64 bits along rows and along columns,
    ``thumbnail`` (432,) has zeros where nothing can be compared: in unreadable, flat and tiny images.
    """

    sha256: bytes
    bytes: int
    format: str
    mode: str
    width: int
    height: int
    hashes: tuple[int, int]
    thumbnail: NDArray[np.int8]
    fault: Fault = ""
    reason: str = ""


@dataclass(frozen=True)
class ImageRecords:
    """Records of N image files as arrays: about 600 bytes an image."""

    sha256: NDArray[np.void]  # (N,) of 32 bytes; zeros where a file cannot be opened
    bytes: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    hashes: NDArray[np.uint64]  # (N, 2)
    thumbnails: NDArray[np.int8]  # (N, 432)
    formats: list[str]
    modes: list[str]
    faults: dict[int, tuple[Fault, str]]  # kind and reason, of the images that cannot be read

    @classmethod
    def empty(cls, number: int) -> ImageRecords:
        """Make room for ``number`` records."""
        return cls(
            np.zeros(number, "V32"),
            np.zeros(number, np.int64),
            np.zeros(number, np.int32),
            np.zeros(number, np.int32),
            np.zeros((number, 2), np.uint64),
            np.zeros((number, 3 * SIDE * SIDE), np.int8),
            [""] * number,
            [""] * number,
            {},
        )

    def __len__(self) -> int:
        return len(self.bytes)

    def put(self, index: int, record: ImageRecord) -> None:
        """Store a record."""
        self.sha256[index] = np.void(record.sha256.ljust(32, b"\0"))
        self.bytes[index], self.width[index], self.height[index] = record.bytes, record.width, record.height
        self.hashes[index], self.thumbnails[index] = record.hashes, record.thumbnail
        self.formats[index], self.modes[index] = record.format, record.mode
        if record.fault:
            self.faults[index] = record.fault, record.reason


def read_records(
    paths: Sequence[str], workers: int | None = None, track: Track | None = None, read: Read | None = None
) -> ImageRecords:
    """Read the records of all files, in worker processes (by default one a processor, none for few files).

    ``read`` decodes images that Pillow cannot read, such as those of many channels; by default Pillow decodes.
    """
    available = available_processors()
    number = (available if len(paths) > _FEW else 0) if workers is None else workers
    batches = EvalBatches(len(paths), batch_size=_BATCH, rank=0, world_size=1)
    found = ImageRecords.empty(len(paths))
    received: Iterable[Batch] = fetched(_Files(paths, read), batches, workers=Workers(number if number > 1 else 0), collate=_batch)
    for batch in received if track is None else track(received, len(batches)):
        for index, record in batch.records:
            found.put(index, record)
    return found


class _Files:
    def __init__(self, paths: Sequence[str], read: Read | None) -> None:
        self._paths, self._read = paths, read

    def __getitem__(self, key: SampleKey) -> Sample:
        return Sample(index=key.index, record=read_record(self._paths[key.index], self._read))


def _batch(samples: Sequence[Sample]) -> Batch:
    return Batch(records=[(sample.index, sample.record) for sample in samples])


def read_record(path: str, read: Read | None = None) -> ImageRecord:
    """Read the record of a file; of a JPEG, as few pixels as the thumbnail needs."""
    blank = ImageRecord(b"", 0, "", "", 0, 0, (0, 0), np.zeros(3 * SIDE * SIDE, np.int8))
    with QUIET:
        try:
            if read is not None:
                return _of_reader(path, read, blank)
            encoded, opened = open_image(path, None, MAX_PIXELS)
        except BadImage as bad:
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            return blank._replace(bytes=size, fault=_fault_of(bad.reason), reason=bad.reason)
        width, height = opened.size
        known = blank._replace(
            sha256=hashlib.sha256(encoded).digest(),
            bytes=len(encoded),
            format=opened.format or "",
            mode=opened.mode,
            width=width,
            height=height,
        )
        try:
            opened.draft("RGB", (_READ_AT, _READ_AT))
            with decoding(encoded, opened, path):
                image = upright_rgb(opened)
        except BadImage as bad:
            return known._replace(fault=_fault_of(bad.reason), reason=bad.reason)
        thumbnail = _standardized(image) if min(width, height) >= _TINY else blank.thumbnail
        return known._replace(hashes=difference_hashes(image), thumbnail=thumbnail)


def _of_reader(path: str, read: Read, blank: ImageRecord) -> ImageRecord:
    levels = read(path)
    with open(path, "rb") as file:
        encoded = file.read()
    image = levels if isinstance(levels, Image.Image) else Image.fromarray(levels)
    return ImageRecord(
        hashlib.sha256(encoded).digest(),
        len(encoded),
        "",
        image.mode,
        *image.size,
        difference_hashes(image),
        _standardized(image) if min(image.size) >= _TINY else blank.thumbnail,
    )


def _fault_of(reason: str) -> Fault:
    if reason.startswith("no such file"):
        return "missing"
    if reason.startswith("empty"):
        return "empty"
    return "truncated" if reason.startswith("truncated") else "unreadable"


def _standardized(image: Image.Image) -> NDArray[np.int8]:
    """Reduce to 12 x 12 pixels with mean 0 and a standard deviation of 24, so that brightness and contrast do not matter."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    if pixels.std(axis=(0, 1)).max() < _FLAT:
        return np.zeros(pixels.size, np.int8)
    centred = pixels.ravel() - pixels.mean()
    deviation = np.sqrt((centred * centred).mean())
    scaled: NDArray[np.int8] = np.rint(centred * (_STEPS / deviation)).clip(-127, 127).astype(np.int8)
    return scaled


def difference_hashes(image: Image.Image) -> tuple[int, int]:
    """Compute dHash of 64 bits along rows and along columns: whether each pixel of 8 x 9 is brighter than the one before it."""
    grey = image.convert("L")
    wide, tall = (np.asarray(grey.resize(size, Image.Resampling.LANCZOS), dtype=np.int16) for size in ((9, 8), (8, 9)))
    bits = (wide[:, 1:] > wide[:, :-1], tall[1:] > tall[:-1])
    along_rows, along_columns = (int.from_bytes(np.packbits(each).tobytes(), "big") for each in bits)
    return along_rows, along_columns


def content_key(path: str) -> int:
    """Return 63 bits that identify a file by its content; of a file above 64 kB, by its size and three blocks of 16 kB.

    Reading whole files of a large data set would take as long as an epoch. Raises ``OSError``.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(size.to_bytes(8, "big"), digest_size=8)
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for start in (0, (size - _BLOCK) // 2, size - _BLOCK):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return int.from_bytes(digest.digest(), "big") >> 1
