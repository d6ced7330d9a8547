"""Build an image cache: every image read once by worker processes, resized and written to one file."""

from __future__ import annotations

import fcntl
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torchvision.transforms import v2

from up.build.data import Phase, section_of, whole_dataset
from up.data.bad_images import BadImage, BadImages, UnreadableImages, name_image
from up.data.cache import (
    ENTRY,
    IMAGES,
    INDEX,
    MANIFEST,
    NAMES,
    VERSION,
    Form,
    ImageCache,
    Levels,
    digest_of,
    keys_of,
    levels_of,
    settings_of,
    shrunk,
    yuv420,
)
from up.data.dataset import KeyedDataset, explained
from up.data.listing import Listing
from up.data.loader import Workers, fetched
from up.data.readers import Reader
from up.data.records import Batch, Image, Sample, SampleKey, Transform
from up.data.sampler import EvalBatches
from up.data.transforms.image import size_of
from up.data.transforms.table import RandomResizedCrop
from up.engine.rows import require_space
from up.errors import Ending, StorageError, UserError
from up.files import TEMPORARY, make_folder, sha256_of, sync_folder, write_atomically, write_json
from up.tasks.experiment import Experiment
from up.types import Record

Track = Callable[[Iterable[Batch], int], Iterable[Batch]]  # yields batches unchanged and shows the progress
OnInvalid = Literal["raise", "skip"]
SHORT_SIDE = 256
_MARGIN = 8 / 7  # of 256 over 224: a random crop sees more of the image than its size
_BATCH = 16  # images that a worker sends at a time
_SAMPLED = 24  # images by which the size of the file is estimated
_LISTED = 20


@dataclass(frozen=True)
class CacheSettings:
    """How images are stored: see ``up data cache --help``."""

    form: Form = "rgb"
    short_side: int = SHORT_SIDE
    quality: int = 95
    on_invalid: OnInvalid = "raise"
    max_bad: float = 0.01
    workers: int = 1

    def most_bad(self, images: int) -> int:
        """Return the largest allowed number of ``images`` that cannot be read."""
        return BadImages(max_bad=self.max_bad, total=images).limit if self.on_invalid == "skip" else 0

    def manifest(self, reader: Reader) -> Record:
        """Return what decides the pixels, as in a manifest."""
        quality = self.quality if self.form == "jpeg" else None
        return {
            "version": VERSION,
            "form": self.form,
            "short_side": self.short_side,
            "quality": quality,
            "reader": settings_of(reader),
        }


def data_to_cache(experiment: Experiment, source: Phase) -> tuple[KeyedDataset, Listing, Reader]:
    """Build a data set without its cache; returns it, its files and its reader. Raises ``UserError`` where it reads no files."""
    part = section_of(experiment, source).dataset
    from_files = part.model_copy(update={"kwargs": {name: value for name, value in part.kwargs.items() if name != "cache"}})
    dataset = whole_dataset(experiment, source, from_files)
    files, reader = getattr(dataset, "files", None), getattr(dataset, "reader", None)
    if not isinstance(dataset, KeyedDataset) or files is None or not isinstance(reader, Reader):
        what = f"the data set {part.type!r} lists no files that a cache could hold"
        raise experiment.error(what, key=f"dataset.{source}.dataset.type")
    if getattr(files, "boxes", None) is not None:
        what = "reads parts of images, and a cache holds whole ones"
        raise experiment.error(what, key=f"dataset.{source}.dataset.kwargs.meta_type")
    return dataset, files, reader


def side_needed(transforms: Sequence[Transform]) -> int | None:
    """Return the shorter side that ``transforms`` need, a random crop with a margin; None where no transform has a size."""
    sides = []
    for transform in transforms:
        size = getattr(transform, "size", None)
        if size is None:
            continue
        side = max(size) if isinstance(size, tuple | list) else int(size)
        is_random = isinstance(transform, RandomResizedCrop | v2.RandomResizedCrop)
        sides.append(math.ceil(side * _MARGIN) if is_random else side)
    return max(sides, default=None)


def build_cache(files: Listing, reader: Reader, folder: Path, settings: CacheSettings, track: Track) -> Record:
    """Build the cache of ``files`` in ``folder`` and return a report; one that fits is left as it is (``built`` is false).

    Raises ``UserError`` and ``StorageError``; a complete cache in ``folder`` is replaced only by a complete one.
    """
    begun = time.monotonic()
    if getattr(reader, "float_images", False):
        what = f"{type(reader).__name__} reads floats, and a cache holds images of 8 bits"
        raise UserError(what, fix="Read these images from their files.", key="image_reader")
    if _fits(folder, files, reader, settings):
        return _report(ImageCache(folder), built=False, seconds=time.monotonic() - begun)
    distinct = _distinct(files)
    made = _Made(distinct, reader, settings)
    estimate = made.estimate()
    require_space(folder, estimate, setting="--out", without="or store less with --form yuv420 or jpeg")
    with _alone_in(folder):
        temporary = folder / f"{TEMPORARY}{IMAGES}"
        try:
            with temporary.open("wb") as file:
                manifest, index = _written(file, made, track)
            (folder / MANIFEST).unlink(missing_ok=True)  # from here on the earlier cache is incomplete
            sync_folder(folder)
            temporary.replace(folder / IMAGES)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            fix = "Free some space, or choose another --out."
            raise StorageError(f"cannot be written ({error.strerror or error})", file=folder, fix=fix) from error
        buffer, ends = keys_of(distinct).arrays
        index["name_end"] = ends[1:]
        for name, values in ((INDEX, index), (NAMES, buffer)):
            _save(folder / name, values)
        sizes: Record = {name: {"bytes": (folder / name).stat().st_size} for name in (IMAGES, INDEX, NAMES)}
        for name in (INDEX, NAMES):
            sizes[name]["sha256"] = sha256_of(folder / name)
        write_json(folder / MANIFEST, {**manifest, "files": sizes})
    return _report(ImageCache(folder), built=True, seconds=time.monotonic() - begun)


def _save(path: Path, values: NDArray[np.generic]) -> None:
    write_atomically(path, lambda file: np.save(file, values))


def _fits(folder: Path, files: Listing, reader: Reader, settings: CacheSettings) -> bool:
    """Whether ``folder`` has a complete cache of these files by these settings, and no more bad images than they allow."""
    with suppress(UserError):
        cache = ImageCache(folder)
        cache.places_of(files, reader)
        if len(cache.manifest["bad"]) > settings.most_bad(cache.manifest["images"]):
            return False
        return {name: cache.manifest[name] for name in settings.manifest(reader)} == settings.manifest(reader)
    return False


def _report(cache: ImageCache, *, built: bool, seconds: float) -> Record:
    made = cache.manifest
    size = sum(each["bytes"] for each in made["files"].values())
    facts = {name: made[name] for name in ("form", "short_side", "images", "resized")}
    return {
        "folder": str(cache.folder),
        **facts,
        "bad": len(made["bad"]),
        "bytes": size,
        "built": built,
        "seconds": round(seconds, 2),
    }


def _distinct(files: Listing) -> Listing:
    """Return each file once, in the order of the list."""
    first: dict[str, int] = {}
    for index, name in enumerate(keys_of(files)):
        first.setdefault(name, index)
    return files if len(first) == len(files) else files.take(np.fromiter(first.values(), np.int64, len(first)))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let no other process build in ``folder``, and remove what killed ones left, and new folders after a failure."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    known = {IMAGES, INDEX, NAMES, MANIFEST, ".lock"}
    if not new and (not folder.is_dir() or any(each not in known and TEMPORARY not in each for each in os.listdir(folder))):
        raise UserError(f"{folder} holds something that is not an image cache", fix="Choose another --out.")
    make_folder(folder)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process builds this cache", fix="Wait for it, or choose another --out.") from None
        for left in folder.glob(f"{TEMPORARY}*"):
            left.unlink()
        try:
            yield
        finally:
            for left in folder.glob(f"{TEMPORARY}*"):
                left.unlink(missing_ok=True)
            (folder / ".lock").unlink()
            with suppress(OSError):  # it is not empty
                for each in new:
                    each.rmdir()


def _written(file: BinaryIO, made: _Made, track: Track) -> tuple[Record, NDArray[np.void]]:
    """Write all images to ``file`` and sync it; returns the manifest and the index."""
    settings, number = made.settings, len(made.files)
    index, bad, at, resized = np.zeros(number, ENTRY), {}, 0, 0
    kinds: set[tuple[int, bool]] = set()  # channels, and whether the image is of Pillow
    limit = settings.most_bad(number)
    batches = EvalBatches(number, batch_size=_BATCH, rank=0, world_size=1)
    workers = Workers(settings.workers if settings.workers > 1 else 0)  # a single process may be this one
    for batch in track(fetched(made, batches, workers=workers, collate=_together), len(batches)):
        file.write(memoryview(batch.blocks.numpy()))
        for place, entry, reason in zip(batch.index, batch.entry, batch.reason, strict=True):
            entry["offset"] = at
            index[place] = entry
            at += int(entry["bytes"])
            if reason is not None:
                bad[str(place)] = reason
        if len(bad) > limit:
            raise _unreadable(made.files, bad, settings, limit)
        resized += sum(batch.resized)
        kinds.update(kind for kind in batch.kind if kind is not None)
        if len({channels for channels, _ in kinds}) > 1:
            what = f"the reader gives images of {' and of '.join(str(channels) for channels, _ in kinds)} channels"
            fix = "Read these images from their files."
            raise UserError(f"{what}, and a cache holds images of one kind", key="image_reader", fix=fix)
    file.flush()
    os.fsync(file.fileno())
    channels, pillow = next(iter(kinds), (3, True))
    facts = {"channels": channels, "pillow": pillow, "images": number, "resized": resized, "bad": bad}
    return {**settings.manifest(made.reader), **facts}, index


def _unreadable(files: Listing, bad: dict[str, str], settings: CacheSettings, limit: int) -> UserError:
    """Return the error that lists the ``bad`` images, by place."""
    problems = [BadImage(files.where(int(place)), reason).problems[0] for place, reason in list(bad.items())[:_LISTED]]
    fix = "Repair or remove it, or continue without it: --on-invalid skip. `up check --images` lists all."
    if settings.on_invalid == "skip":
        fix = f"{len(bad):,} of {len(files):,} images cannot be read, expected at most {limit:,} (max_bad)."
    return UnreadableImages.of([*problems[:-1], replace(problems[-1], fix=fix)])


class _Made:
    """Data set of the images as they are stored, one a key."""

    def __init__(self, files: Listing, reader: Reader, settings: CacheSettings) -> None:
        self.files, self.reader, self.settings = files, reader, settings

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: SampleKey) -> Sample:
        path, entry = self.files.path_of(key.index), np.zeros((), ENTRY)
        try:
            found = os.stat(path)
            entry["source_bytes"], entry["source_time"] = found.st_size, found.st_mtime_ns
            encoded = Path(path).read_bytes()
            entry["source_digest"] = digest_of(encoded)  # of a damaged image too: a copy of it has another time
            image = self.files.read(key.index, self.reader)
        except (BadImage, OSError) as error:
            bad = explained(error, path) if isinstance(error, OSError) else error
            if not isinstance(bad, BadImage):
                raise bad from None
            return Sample(block=np.zeros(0, np.uint8), entry=entry, kind=None, resized=False, reason=bad.reason, index=key.index)
        except Exception as error:
            if not isinstance(error, Ending):
                name_image(error, path)
            raise
        small = shrunk(image, self.settings.short_side)
        block = self._stored(encoded, small, is_whole=small is image)
        entry["bytes"], (entry["height"], entry["width"]) = len(block), (0, 0) if self.settings.form == "jpeg" else size_of(small)
        kind = levels_of(small).shape[2], isinstance(image, Pillow.Image)
        return Sample(block=block, entry=entry, kind=kind, resized=small is not image, reason=None, index=key.index)

    def _stored(self, encoded: bytes, image: Image, *, is_whole: bool) -> Levels:
        levels, form = levels_of(image), self.settings.form
        if form == "yuv420" and levels.shape[2] == 3:
            return yuv420(levels)
        if form != "jpeg":
            return levels.ravel()
        if not is_whole:
            if getattr(self.reader, "color_mode", "RGB") == "BGR":  # the reader swaps the channels again
                levels = levels[..., ::-1]
            file = io.BytesIO()
            Pillow.fromarray(np.ascontiguousarray(levels.squeeze())).save(file, "JPEG", quality=self.settings.quality)
            encoded = file.getvalue()
        return np.frombuffer(encoded, np.uint8)

    def estimate(self) -> float:
        """Estimate the bytes of all images from some of them."""
        indices = np.linspace(0, len(self) - 1, min(_SAMPLED, len(self))).astype(int)
        sizes = [int(self[SampleKey(0, int(index))].entry["bytes"]) for index in indices]
        return 1.05 * len(self) * (sum(sizes) / len(sizes) + ENTRY.itemsize)


def _together(samples: Sequence[Sample]) -> Batch:
    blocks = torch.from_numpy(np.concatenate([sample.block for sample in samples]))
    return Batch(
        blocks=blocks, **{name: [sample[name] for sample in samples] for name in ("index", "entry", "kind", "resized", "reason")}
    )
