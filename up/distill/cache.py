"""Cache of teacher outputs on disk: a rerun, or a second student, does not run the teacher again.

Keyed augmentation gives the same image whenever its key comes again. The key of an unmixed image is its seed; that of a mixed
image depends on all seeds of the batch and on the draw of the mixing.

    FOLDER/cache.json                      identity of the rows; written first
    FOLDER/epoch_000012/WRITER.rows        rows of a fixed number of bytes, only ever appended to
    FOLDER/epoch_000012/WRITER.keys        for each row its key (8 bytes) and the CRC-32 of the row (4 bytes)

Every process appends to its own files, rows before keys: after a kill at most one row has no key. Their names begin with a digest
of cache.json: two different runs that start a cache at the same moment never read each other's rows.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from math import log, prod
from pathlib import Path
from shutil import disk_usage
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from up.data.records import Batch, Dataset, SampleKey
from up.distill.section import mimic_of
from up.distill.teachers import Teacher
from up.distill.terms import DistillationTerms
from up.distributed.group import rank
from up.errors import Problem, StorageError, UserError
from up.files import write_json
from up.models.feature_hooks import Activations
from up.schema.mimic import MimicCache
from up.tasks.experiment import Experiment

Keys = NDArray[np.uint64]
Rows = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_LABEL = "cache.json"
_FORMAT = "2"
_ENTRY = np.dtype([("key", "<u8"), ("crc", "<u4")])
_INDEX = np.dtype([*_ENTRY.descr, ("file", "<i4"), ("row", "<i8")])
_SAMPLED = 16  # images that are hashed to notice other images under the same names
_ANOTHER = "Choose another mimic.cache.dir"


class ImageKeys(NamedTuple):
    """Keys (B,) of the images of a batch, and the step of the batch."""

    keys: Keys
    step: int


def image_keys(batch: Mapping[str, Tensor], step: int, mixing: tuple[int, ...] | None) -> ImageKeys:
    """Compute the keys of a batch; ``mixing`` identifies the draw of the mixing, None if images are not mixed."""
    seeds: Keys = batch["seed"].numpy().astype(np.uint64)
    if mixing is None:
        return ImageKeys(seeds, step)
    whole = blake2b(seeds.tobytes() + repr(mixing).encode(), digest_size=8).digest()
    words = np.arange(len(seeds), dtype=np.uint64) + np.uint64(int.from_bytes(whole, "little"))
    # the finalizer of SplitMix64 (Steele et al. 2014) keeps neighbours of different batches apart
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ImageKeys(words ^ (words >> np.uint64(31)), step)


@dataclass(frozen=True)
class Codec:
    """Encode activations (B, …), one per layer, as rows of bytes, and decode them as float32.

    ``dtype`` is the type of stored numbers. With ``topk`` only the k largest of each vector are stored, and one float32 for all
    others: the value at which they have the same probability in total (T 1).
    """

    shapes: Mapping[str, tuple[int, ...]]  # of one image, by layer
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    topk: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(self._sizes())

    def encode(self, outputs: Activations) -> Rows:
        """Return rows (B, row_bytes) on the host. Raises ``UserError`` for a layer of another shape than at the start."""
        parts: list[Tensor] = []
        for layer, shape in self.shapes.items():
            found = tuple(outputs[layer].shape[1:])
            if found != shape:
                what = f"mimic.cache: {layer} gives {found} for an image, {shape} at the start: images vary in size"
                raise UserError(f"{what}. Remove mimic.cache, or give all images one size.")
            vector, fields = outputs[layer].float().flatten(1), self._fields(shape)
            numbers, k = fields[0]
            if len(fields) == 1:
                parts.append(vector.to(numbers))
                continue
            largest, where = vector.topk(k, dim=1)
            others = vector.scatter(1, where, -torch.inf).logsumexp(1, keepdim=True) - log(vector.shape[1] - k)
            parts += [largest.to(numbers), where.int(), others]
        rows: Rows = torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1).cpu().numpy()
        return rows

    def decode(self, rows: Tensor) -> dict[str, Tensor]:
        """Return float32 activations by layer, on the device of ``rows`` (B, row_bytes) uint8."""
        outputs, columns = {}, iter(torch.split(rows, self._sizes(), dim=1))
        for layer, shape in self.shapes.items():
            values = [next(columns).clone(memory_format=torch.contiguous_format).view(kind) for kind, _ in self._fields(shape)]
            vector = values[0].float()
            if len(values) > 1:
                vector = values[2].repeat(1, prod(shape)).scatter(1, values[1].long(), vector)
            outputs[layer] = vector.view(-1, *shape)
        return outputs

    def finite(self, outputs: Activations) -> Mask:
        """Find the images (B,) whose numbers are finite as stored."""
        parts = [torch.isfinite(outputs[layer].to(_DTYPES[self.dtype])).flatten(1).all(1) for layer in self.shapes]
        found: Mask = torch.stack(parts).all(0).cpu().numpy()
        return found

    def _fields(self, shape: tuple[int, ...]) -> list[tuple[torch.dtype, int]]:
        """List type and count of the stored numbers: all of them, or the largest, their positions, and one for the others."""
        numbers, width = _DTYPES[self.dtype], prod(shape)
        if self.topk is None or self.topk >= width:
            return [(numbers, width)]
        return [(numbers, self.topk), (torch.int32, self.topk), (torch.float32, 1)]

    def _sizes(self) -> list[int]:
        return [kind.itemsize * many for shape in self.shapes.values() for kind, many in self._fields(shape)]


class Store:
    """Rows of ``row_bytes`` bytes on disk by 64-bit keys, one set of files per epoch, with checksums.

    ``identity`` describes what the rows depend on. Raises ``UserError`` for a folder with other content, rows of another
    identity, or damaged files.
    """

    def __init__(self, folder: Path, *, row_bytes: int, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.row_bytes = row_bytes
        self._label = {"format": _FORMAT, **identity, "bytes a row": str(row_bytes)}
        self._digest = sha256(repr(self._label).encode()).hexdigest()[:8]
        self._reading: int | None = None  # the epoch of the index
        self._writing: int | None = None
        self._require_own()
        for keys in folder.glob(f"epoch_*/{self._digest}-*.keys"):
            self._length(keys)

    def read(self, epoch: int, keys: Keys) -> tuple[Rows, Mask]:
        """Return rows (N, row_bytes) for ``keys`` (N,), and which of them were found; the others are not filled."""
        if self._reading != epoch:
            self._open(epoch)
        rows = np.empty((len(keys), self.row_bytes), np.uint8)
        if not len(self._keys):
            return rows, np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[at] == keys
        for place in np.flatnonzero(found):
            _, crc, file, row = self._index[at[place]]
            rows[place] = self._files[file][row]
            if zlib.crc32(rows[place]) != crc:
                raise _damaged(self._paths[file], f"row {row} does not fit its checksum")
        return rows, found

    def append(self, epoch: int, keys: Keys, rows: Rows) -> None:
        """Add rows (N, row_bytes).

        Raises ``StorageError`` if they cannot be written, ``UserError`` if another run started its own cache in the folder.
        """
        entries = np.zeros(len(keys), _ENTRY)
        entries["key"], entries["crc"] = keys, [zlib.crc32(row) for row in rows]
        try:
            if self._writing != epoch:
                self._write_label()
                folder = self._folder_of(epoch)
                folder.mkdir(exist_ok=True)
                self._writer = folder / f"{self._digest}-r{rank()}-{os.getpid()}-{secrets.token_hex(4)}"
                self._writing = epoch
            for suffix, added in ((".rows", rows), (".keys", entries)):
                with self._writer.with_suffix(suffix).open("ab") as file:
                    file.write(added.tobytes())
        except OSError as error:
            what = f"{self.folder}: cannot be written ({error.strerror or error})"
            raise StorageError(f"{what}. Free some space, or choose another mimic.cache.dir.") from error

    def size(self) -> int:
        """Return the bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"epoch_*/{self._digest}-*"))

    def _folder_of(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:06d}"

    def _open(self, epoch: int) -> None:
        """Index the rows of an epoch in all files."""
        self._paths = sorted(self._folder_of(epoch).glob(f"{self._digest}-*.keys"))
        self._files: list[Rows] = []
        tables = [np.zeros(0, _INDEX)]
        for number, path in enumerate(self._paths):
            entries = np.fromfile(path, _ENTRY, count=self._length(path))
            table = np.empty(len(entries), _INDEX)
            table["key"], table["crc"] = entries["key"], entries["crc"]
            table["file"], table["row"] = number, np.arange(len(entries))
            tables.append(table)
            shape = (len(entries), self.row_bytes)
            rows = np.memmap(path.with_suffix(".rows"), np.uint8, "r", shape=shape) if len(entries) else np.zeros(shape, np.uint8)
            self._files.append(np.asarray(rows))
        joined = np.concatenate(tables)
        self._index = joined[np.argsort(joined["key"], kind="stable")]
        self._keys = np.ascontiguousarray(self._index["key"])
        self._reading = epoch

    def _length(self, path: Path) -> int:
        """Count the whole keys in a file. Raises ``UserError`` if rows are missing."""
        rows = path.with_suffix(".rows")
        size = path.stat().st_size // _ENTRY.itemsize
        there = rows.stat().st_size // self.row_bytes if rows.exists() else 0
        if there < size:
            raise _damaged(path, f"{there:,} of {size:,} rows")
        return size

    def _write_label(self) -> None:
        if not (self.folder / _LABEL).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _LABEL, self._label)
        self._require_own()

    def _require_own(self) -> None:
        path = self.folder / _LABEL
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("no table")
        except FileNotFoundError:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds something that is no cache. {_ANOTHER}.") from None
            return
        except NotADirectoryError:
            raise UserError(f"{self.folder}: lies below a file. Expected a folder: choose another mimic.cache.dir.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}). Delete {self.folder}, or choose another mimic.cache.dir.") from None
        for field, ours in self._label.items():
            if found.get(field) != ours:
                what = f"{self.folder}: is the cache of another run: {field} {found.get(field)}, this run has {ours}"
                raise UserError(f"{what}. {_ANOTHER}, or delete this one.")


def _damaged(keys: Path, what: str) -> UserError:
    return UserError(
        f"{keys.with_suffix('.rows')}: damaged ({what}). Delete this file and its .keys; the teacher will fill the gap."
    )


class CachedTeacher:
    """A teacher that runs only for images that the store does not have.

    Its outputs always pass through the codec: a warm run equals the cold one bit for bit. Numbers that are not finite end
    the run and are not stored.
    """

    def __init__(self, teacher: Teacher, store: Store, codec: Codec, *, steps_per_epoch: int) -> None:
        self.name = teacher.name
        self.digest = teacher.digest
        self._teacher = teacher
        self._store = store
        self._codec = codec
        self._steps_per_epoch = steps_per_epoch

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        images: ImageKeys | None = batch.get("image_keys")
        if images is None:  # the dry run's batch of noise
            return self._teacher(batch)
        epoch = images.step // self._steps_per_epoch
        rows, found = self._store.read(epoch, images.keys)
        if not found.all():
            outputs = self._teacher(batch)
            rows[~found] = self._codec.encode(outputs)[~found]
            new = ~found & self._codec.finite(outputs)
            self._store.append(epoch, images.keys[new], rows[new])
        return self._codec.decode(torch.from_numpy(rows).to(batch["image"].device, non_blocking=True))


def build_caches(
    experiment: Experiment,
    terms: DistillationTerms,
    teachers: Sequence[Teacher],
    data: Dataset,
    *,
    steps_per_epoch: int,
    epochs: float,
) -> tuple[list[CachedTeacher], list[str]]:
    """Put the cache of ``mimic.cache`` in front of the teachers; returns them with lines on its size for the log.

    Each seed of the run has a folder, since its images are its own. Raises ``UserError`` for outputs that cannot be cached and
    for a cache of another teacher or other images, ``StorageError`` if the disk is too small.
    """
    section, runtime = mimic_of(experiment).cache, experiment.config.runtime
    assert section is not None
    experiment.raise_if_any(dict.fromkeys(_uncacheable(experiment, section, terms, teachers)))
    images = {"names and labels": data.fingerprint()[:16], **_image_settings(experiment), "images": sampled_images(data)}
    cached, lines, growth = [], [], 0.0
    for teacher in teachers:
        codec = Codec({layer: teacher.shapes[layer][1:] for layer in terms.layers_of(teacher.name)}, section.dtype, section.topk)
        identity = {
            "teacher": teacher.digest()[:16],
            "layers": ", ".join(codec.shapes),
            "numbers": f"{section.dtype}, {'all' if section.topk is None else f'the {section.topk} largest'}",
            "precision": runtime.precision,
            **images,
        }
        with experiment.placing("mimic.cache.dir"):
            folder = Path(section.dir) / teacher.name / f"seed_{runtime.random_seed}"
            store = Store(folder, row_bytes=codec.row_bytes, identity=identity)
        row, there = codec.row_bytes + _ENTRY.itemsize, store.size()
        total = row * len(data) * epochs
        growth += max(0.0, total - there)
        lines.append(
            f"{teacher.name}: cache in {folder}: {size_text(row * len(data))} an epoch ({len(data):,} rows of {row:,} bytes), "
            f"{size_text(total)} for {epochs:.3g} epochs; {there:,} bytes are there"
        )
        cached.append(CachedTeacher(teacher, store, codec, steps_per_epoch=steps_per_epoch))
    with experiment.placing("mimic.cache.dir"):
        _require_space(Path(section.dir), growth)
    return cached, lines


def _uncacheable(
    experiment: Experiment, section: MimicCache, terms: DistillationTerms, teachers: Sequence[Teacher]
) -> Iterator[Problem]:
    """Find outputs that the terms need and a cache cannot keep."""
    by_name = {teacher.name: teacher for teacher in teachers}
    for term in terms.terms:
        if mimic_of(experiment).jobs[term.job].teachers[term.teacher].teacher_bn_mode == "train":
            what = "outputs that depend on the rest of the batch cannot be cached"
            key = f"{term.place}.{term.teacher}.teacher_bn_mode"
            yield Problem(what, got="train", expected="eval", key=key, fix="Or remove mimic.cache.")
    for side, layer, place in terms.layers():
        teacher = by_name.get(side)
        if teacher is not None and teacher.shapes[layer][0] != teacher.images:
            what = f"gives {teacher.shapes[layer][0]} rows for {teacher.images} images; a cache keeps one row per image"
            yield Problem(what, key=place)
    for term in terms.terms:
        if section.topk is not None and not term.loss.of_logits:
            what = f"caches the largest logits only, but {term.loss.name} needs full features"
            yield Problem(what, key="mimic.cache.topk", fix="Remove mimic.cache.topk.")


def _image_settings(experiment: Experiment) -> dict[str, str]:
    """Hash the settings that decide, beside files and seeds, which numbers reach the teacher."""
    train = experiment.config.dataset.train
    assert train is not None
    kwargs, batch_fn = train.dataset.kwargs, train.dataloader.kwargs.batch_fn
    reader = dict(kwargs.get("image_reader") or {})
    reader["kwargs"] = {name: value for name, value in (reader.get("kwargs") or {}).items() if name != "image_dir"}
    settings = {"transforms": kwargs.get("transformer"), "reader": reader, "mixing": batch_fn.model_dump() if batch_fn else None}
    return {
        name: sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16] for name, what in settings.items()
    }


def sampled_images(data: Dataset) -> str:
    """Hash a few images as workers make them: other files under the same names, and a library that draws or resizes differently,
    change it. Transforms that run on the device must not be in ``data``."""
    found = sha256()
    for index in range(0, len(data), max(1, len(data) // _SAMPLED)):
        found.update(np.asarray(data[SampleKey(epoch=0, index=index)].image).tobytes())
    return found.hexdigest()[:16]


def _require_space(folder: Path, needed: float) -> None:
    """Raise ``UserError`` or ``StorageError`` unless the folder may grow by ``needed`` bytes. Creates nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = disk_usage(there).free
    if needed and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written (no permission for {there}). {_ANOTHER}.")
    if needed > free:
        what = f"{folder}: the cache grows by {size_text(needed)}, {size_text(free)} are free"
        raise StorageError(f"{what}. {_ANOTHER}, set mimic.cache.topk, or remove mimic.cache.")


def size_text(number: float) -> str:
    """Format a number of bytes, such as ``2.58 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
