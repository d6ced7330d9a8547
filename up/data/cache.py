"""Image caches: the images of a data set in one memory-mapped file, resized once and read without decoding.

A cache is a folder: ``images.bin`` has the images one after another, ``index.npy`` and ``names.npy`` say which they are, and
``manifest.json``, written last, makes it complete. All processes that read it share the pages that the system keeps in memory.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from up.data.bad_images import BadImage
from up.data.geometry import Box
from up.data.listing import Listing
from up.data.packed import PackedStrings
from up.data.readers import Reader, view_of
from up.data.records import Image
from up.data.transforms.image import size_of, tensor_of
from up.data.transforms.view import Library, OneView
from up.distributed.env import rank_in_environment
from up.errors import UserError
from up.text import Verbatim, count
from up.types import Json, Record

try:
    from up.data import _pixels
except ImportError:  # there was no compiler
    _pixels = None  # type: ignore[assignment]

Form: TypeAlias = Literal["rgb", "yuv420", "jpeg"]
Levels: TypeAlias = NDArray[np.uint8]
VERSION = 1
IMAGES, INDEX, NAMES, MANIFEST = "images.bin", "index.npy", "names.npy", "manifest.json"
ENTRY = np.dtype(
    [
        ("offset", "<u8"),
        ("bytes", "<u8"),  # 0: the source cannot be read
        ("height", "<u4"),  # 0: an encoded image, which the reader decodes
        ("width", "<u4"),
        ("source_bytes", "<u8"),
        ("source_time", "<i8"),  # in nanoseconds
        ("source_digest", "<u8"),
        ("name_end", "<i8"),  # in names.npy
    ]
)
_REBUILD = "Build it again: up data cache CONFIG.yaml"


class ImageCache:
    """A complete cache in ``folder``. Raises ``UserError`` for a missing, incomplete, truncated or incompatible one.

    Its files are mapped into memory here, not at the first image, so that a cache that is built again meanwhile changes nothing.
    """

    def __init__(self, folder: str | Path, manifest: Record | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _expect_complete(self.folder) if manifest is None else manifest
        self.index: NDArray[np.void] = np.load(self.folder / INDEX, mmap_mode="r")
        """An ``ENTRY`` for each image."""
        self._bytes = _mapped(self.folder / IMAGES)
        if _manifest_in(self.folder) != self.manifest:
            raise UserError(f"{self.folder} was built again meanwhile", fix="Start again.", key="cache")

    def __reduce__(self) -> tuple[object, ...]:  # a process that is spawned maps the files itself
        return type(self), (self.folder, self.manifest)

    @property
    def names(self) -> PackedStrings:
        """The name of each image, as ``keys_of`` makes it."""
        return PackedStrings.of_arrays(np.load(self.folder / NAMES, mmap_mode="r"), np.append(0, self.index["name_end"]))

    @property
    def is_exact(self) -> bool:
        """Whether the images have the pixels of their files."""
        return self.manifest["form"] != "yuv420" and not self.manifest["resized"]

    @property
    def identity(self) -> str:
        """Settings that change the pixels; empty if the pixels are those of the files."""
        return "" if self.is_exact else " ".join(str(self.manifest[name]) for name in ("form", "short_side", "quality"))

    def notes(self) -> Iterator[str]:
        """Report how the images differ from their files, as a line."""
        if not self.is_exact:
            made = self.manifest
            resized = f"{count(made['resized'], 'image')} resized to a shorter side of {made['short_side']}"
            how = f"{resized}, stored as {made['form']}"
            yield f"{self.folder}: {how}: losses and metrics may differ slightly from those of the files."

    def places_of(self, files: Listing, reader: Reader) -> NDArray[np.int32]:
        """Find the entry of each file (N,). Raises ``UserError`` for another reader, and for files that are not in it or changed.

        The first rank compares the files with those that the cache was built from, for all ranks.
        """
        if getattr(files, "boxes", None) is not None:
            raise UserError("holds whole images, and custom_det reads parts of them", fix="Remove it.", key="cache")
        self._expect_reader(reader)
        names, keys = self.names, keys_of(files)
        if all(map(np.array_equal, names.arrays, keys.arrays)):
            places = np.arange(len(files), dtype=np.int32)
        else:
            known = {name: place for place, name in enumerate(names)}
            places = np.array([known.get(name, -1) for name in keys], dtype=np.int32)
            missing = np.flatnonzero(places < 0)
            if len(missing):
                what = f"{self.folder} lacks {len(missing):,} of {count(len(places), 'image')}, the first is"
                raise UserError(f"{what} {files.where(int(missing[0]))}", fix=_REBUILD, key="cache")
        if rank_in_environment() == 0:
            self._expect_unchanged(files, places)
        return places

    def _expect_reader(self, reader: Reader) -> None:
        built, own = self.manifest["reader"], settings_of(reader)
        for name in dict.fromkeys([*own, *built]):
            if own.get(name) != built.get(name):
                what = f"{self.folder} was built with another image_reader: {name}"
                raise UserError(what, got=own.get(name), expected=repr(built.get(name)), fix=_REBUILD, key="cache")

    def _expect_unchanged(self, files: Listing, places: NDArray[np.int32]) -> None:
        index = self.index
        sizes, times, digests = (index[name][places].tolist() for name in ("source_bytes", "source_time", "source_digest"))
        changed = [
            (at, problem)
            for at in range(len(files))
            if (problem := _change(files.path_of(at), sizes[at], times[at], digests[at])) is not None
        ]
        if changed:
            at, problem = changed[0]
            more = f" (and {len(changed) - 1:,} more)" if len(changed) > 1 else ""
            what = f"{files.where(at)} {problem} since {self.folder} was built{more}"
            raise UserError(what, fix=_REBUILD, key="cache")

    def read(self, place: int, where: str, reader: Reader) -> Image:
        """Read an image as ``reader`` would have given it. Raises ``BadImage``."""
        block, size = self._block(place, where)
        return self._image(block, size, Box(0, 0, *size)) if size[0] else reader(block.tobytes(), where)

    def read_view(self, place: int, where: str, reader: Reader, view: OneView) -> Image:
        """Read a view of an image, for which no more pixels than it needs are read. Raises ``BadImage``."""
        block, size = self._block(place, where)
        if not size[0]:
            return view_of(reader, block.tobytes(), where, view)
        drawn = view.at(size)
        library: Library = "pillow" if self.manifest["pillow"] else "torch"
        in_planes = self.manifest["form"] == "yuv420"  # which torch resizes faster
        if self.manifest["channels"] == 3 and drawn.is_exact(library) and not (in_planes and library == "torch"):
            box = drawn.needed
            levels = drawn.resized(self._part(block, size, box), box, library)
            return Pillow.fromarray(levels) if library == "pillow" and not view.as_tensor else tensor_of(levels)
        return drawn.moved().of(self._image(block, size, drawn.box))

    def _block(self, place: int, where: str) -> tuple[Levels, tuple[int, int]]:
        """Return the bytes of an image and its height and width; these are 0 for an encoded one."""
        entry = self.index[place]
        start, size, height, width = (int(entry[name]) for name in ("offset", "bytes", "height", "width"))
        if not size:
            raise BadImage(where, self.manifest["bad"][str(place)])
        return self._bytes[start : start + size], (height, width)

    def _part(self, block: Levels, size: tuple[int, int], box: Box) -> Levels:
        """Return the levels (rows, columns, C) of a part of an image, read-only where they are those of the file."""
        channels = self.manifest["channels"]
        if self.manifest["form"] == "yuv420" and channels == 3:
            return _rgb_of(block, size, box)
        top, left, rows, columns = box
        return block.reshape(*size, channels)[top : top + rows, left : left + columns]

    def _image(self, block: Levels, size: tuple[int, int], box: Box) -> Image:
        levels = self._part(block, size, box)
        levels = levels if levels.flags.writeable else np.array(levels)  # transforms may write there
        if self.manifest["pillow"]:
            return Pillow.fromarray(np.ascontiguousarray(levels))
        return tensor_of(levels)


@dataclass(frozen=True)
class CachedFiles:
    """The images of a list of files in a cache: file i is entry ``places[i]`` (N,).

    ``scales``: the reader would decode the files of training crops at a smaller scale, as it cannot pixels.
    """

    cache: ImageCache
    places: NDArray[np.int32]
    scales: bool = False

    @classmethod
    def of(cls, cache: ImageCache, files: Listing, reader: Reader, *, train: bool = False) -> CachedFiles:
        """Find ``files`` in ``cache``. Raises ``UserError`` as ``ImageCache.places_of``."""
        scales = train and getattr(reader, "fast_decode", False) and cache.manifest["form"] != "jpeg"
        return cls(cache, cache.places_of(files, reader), scales)

    @property
    def identity(self) -> str:
        """Settings that change the pixels; empty if the pixels are those of the files."""
        return self.cache.identity or ("whole" if self.scales else "")

    def notes(self) -> Iterator[str]:
        """Report how the images differ from their files, as lines."""
        yield from self.cache.notes()
        if self.scales:
            yield f"{self.cache.folder}: fast_decode has no effect: the images are decoded in full already."

    def take(self, kept: NDArray[np.int64]) -> CachedFiles:
        """Select the files at the indices ``kept``."""
        return replace(self, places=self.places[kept])

    def read(self, index: int, where: str, reader: Reader) -> Image:
        """Read the image of a file. Raises ``BadImage``."""
        return self.cache.read(int(self.places[index]), where, reader)

    def read_view(self, index: int, where: str, reader: Reader, view: OneView) -> Image:
        """Read a view of the image of a file, for which no more pixels than it needs are read. Raises ``BadImage``."""
        return self.cache.read_view(int(self.places[index]), where, reader, view)


def _expect_complete(folder: Path) -> Record:
    """Return the manifest of a cache. Raises ``UserError`` unless its files are those that it was completed with."""
    path = folder / MANIFEST
    try:
        manifest = _manifest_in(folder)
        if manifest["version"] != VERSION:
            what = f"{folder} was built by another version"
            raise UserError(what, got=manifest["version"], expected=str(VERSION), fix=_REBUILD, key="cache")
        for name, expected in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                what, wanted = f"{folder / name} is damaged", f"{expected['bytes']:,} bytes"
                raise UserError(what, got=Verbatim(f"{size:,} bytes"), expected=wanted, fix=_REBUILD, key="cache")
            if "sha256" in expected and sha256((folder / name).read_bytes()).hexdigest() != expected["sha256"]:
                raise UserError(f"{folder / name} is damaged (sha256 mismatch)", fix=_REBUILD, key="cache")
    except UserError:
        raise
    except FileNotFoundError as error:
        begun = "is incomplete" if folder.is_dir() and any(folder.iterdir()) else "is not an image cache"
        fix = _REBUILD.replace(" again", "")
        raise UserError(f"{folder} {begun}: no {Path(error.filename).name}", fix=fix, key="cache") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error})", fix=_REBUILD, key="cache") from None
    return manifest


def _manifest_in(folder: Path) -> Record:
    found: Record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


def _mapped(path: Path) -> Levels:
    """Map a file into memory, read-only."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    return np.frombuffer(mapped, np.uint8)


def _change(path: str, size: int, time: int, digest: int) -> str | None:
    """Describe how the content of a file changed; None if it did not, whatever its modification time."""
    try:
        found = os.stat(path)
        if found.st_size != size:
            return f"changed ({found.st_size:,} bytes, {size:,} before)" if size else "changed (it could not be read before)"
        if found.st_mtime_ns != time and digest_of(Path(path).read_bytes()) != digest:
            return "changed (different content, same size)"
    except OSError as error:
        return f"can no longer be read ({error.strerror})" if size else None
    return None


def digest_of(encoded: bytes) -> int:
    """Hash the content of a file to 64 bits (BLAKE2)."""
    return int.from_bytes(blake2b(encoded, digest_size=8).digest(), "little")


def keys_of(files: Listing) -> PackedStrings:
    """Return the name of each file in a cache: relative to its image folder, so that data may move; folders but the first count."""
    folders = list(dict.fromkeys(root.folder for root in files.roots))
    if len(folders) == 1:
        return files.names
    prefixes = ["" if not at else f"{at}:" for at in (folders.index(root.folder) for root in files.roots)]
    return PackedStrings(prefixes[int(source)] + name for source, name in zip(files.source, files.names, strict=True))


def settings_of(reader: Reader) -> Record:
    """Return the type of a reader and its settings but the folder: what decides the pixels that it reads."""
    kind = type(reader)
    simple = (bool, int, float, str, tuple, list, type(None))
    others = ("image_dir", "fast_decode")  # whole images are read alike
    kept: dict[str, Json] = {"type": f"{kind.__module__}:{kind.__qualname__}"}
    kept |= {name: value for name, value in sorted(vars(reader).items()) if name not in others and isinstance(value, simple)}
    found: Record = json.loads(json.dumps(kept))
    return found


def shrunk(image: Image, short_side: int) -> Image:
    """Resize an image to a shorter side of ``short_side`` pixels (bicubic, antialiased); a smaller one is returned as it is."""
    height, width = size_of(image)
    if min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if isinstance(image, Pillow.Image):
        return image.resize(size, Pillow.Resampling.BICUBIC)
    planes = [Pillow.fromarray(plane.numpy()).resize(size, Pillow.Resampling.BICUBIC) for plane in image]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))


def levels_of(image: Image) -> Levels:
    """Return the levels (H, W, C) of a Pillow image or a uint8 tensor (C, H, W)."""
    return np.asarray(image) if isinstance(image, Pillow.Image) else np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def yuv420(levels: Levels) -> Levels:
    """Convert RGB (H, W, 3) to luma (H, W) and two planes of colour at half the size, flat: JPEG's YCbCr (ITU-R 601, 0 to 255)."""
    luma, *colours = Pillow.fromarray(levels).convert("YCbCr").split()
    return np.concatenate([np.asarray(luma).ravel(), *(np.asarray(colour.reduce(2)).ravel() for colour in colours)])


_LEVEL = np.arange(256) - 128
_RED, _BLUE = np.rint(1.402 * _LEVEL).astype(np.int16), np.rint(1.772 * _LEVEL).astype(np.int16)
_GREEN_OF_CB, _GREEN_OF_CR = (np.rint(-64 * factor * _LEVEL).astype(np.int16) for factor in (0.344136, 0.714136))


def _rgb_of(block: Levels, size: tuple[int, int], box: Box) -> Levels:
    """Convert the part ``box`` of a block of ``yuv420`` to RGB (rows, columns, 3): planes in memory, one after another."""
    (height, width), (top, left, rows, columns) = size, box
    made = np.empty((3, rows, columns), np.uint8)
    if _pixels is not None:
        _pixels.rgb_of_yuv420(block, made, size, (top, left, rows, columns))
        return made.transpose(1, 2, 0)
    half = (height + 1) // 2, (width + 1) // 2
    luma = block[: height * width].reshape(size)[top : top + rows, left : left + columns]
    whole = block[height * width :].reshape(2, *half)
    first = top // 2, left // 2
    blue, red = whole[:, first[0] : (top + rows + 1) // 2, first[1] : (left + columns + 1) // 2]
    colour = np.empty((3, *blue.shape), np.int16)  # what is added to the luma
    colour[0], colour[2] = _RED[red], _BLUE[blue]
    colour[1] = (_GREEN_OF_CB[blue] + _GREEN_OF_CR[red] + 32) >> 6
    colour = np.repeat(colour, 2, axis=2)[:, :, left % 2 : left % 2 + columns]
    for odd in range(2):
        own = luma[odd::2]
        under = (top + odd) // 2 - first[0]
        levels = own + colour[:, under : under + len(own)]
        made[:, odd::2] = np.clip(levels, 0, 255, out=levels)
    return made.transpose(1, 2, 0)
