"""Cache of teacher outputs on disk: a rerun, or a second student, does not run the teacher again.

Keyed augmentation gives the same image whenever its key comes again. The key of an unmixed image is its seed; that of a mixed
image depends on all seeds of the batch and on the draw of the mixing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from math import log, prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from up.data.records import Batch, Dataset, SampleKey
from up.data.transforms.image import Scheduled
from up.distill.section import mimic_of
from up.distill.teachers import Teacher
from up.distill.terms import DistillationTerms
from up.engine.rows import KEY_BYTES, Keys, Mask, Rows, Store, pack, require_space, unpack
from up.errors import Problem, UserError
from up.models.feature_hooks import Activations
from up.schema.mimic import MimicCache
from up.tasks.experiment import Experiment
from up.text import size_text

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_SAMPLED = 16  # images that are hashed to notice other images under the same names
_DIR = "mimic.cache.dir"


def image_keys(batch: Mapping[str, Tensor], mixing: tuple[int, ...] | None) -> Tensor:
    """Compute the keys (B,) int64 of a batch; ``mixing`` identifies the draw of the mixing, None if images are not mixed."""
    seeds: Keys = batch["seed"].numpy().astype(np.uint64)
    if mixing is None:
        return torch.from_numpy(seeds.view(np.int64))
    whole = blake2b(seeds.tobytes() + repr(mixing).encode(), digest_size=8).digest()
    words = np.arange(len(seeds), dtype=np.uint64) + np.uint64(int.from_bytes(whole, "little"))
    # the finalizer of SplitMix64 (Steele et al. 2014) keeps neighbours of different batches apart
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((words ^ (words >> np.uint64(31))).view(np.int64))


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
        return sum(kind.itemsize * many for shape in self.shapes.values() for kind, many in self._fields(shape))

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
        return pack(parts)

    def decode(self, rows: Tensor) -> dict[str, Tensor]:
        """Return float32 activations by layer, on the device of ``rows`` (B, row_bytes) uint8."""
        outputs, columns = {}, iter(unpack(rows, [field for shape in self.shapes.values() for field in self._fields(shape)]))
        for layer, shape in self.shapes.items():
            vector, *others = [next(columns) for _ in self._fields(shape)]
            vector = vector.float()
            if others:
                vector = others[1].repeat(1, prod(shape)).scatter(1, others[0].long(), vector)
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


class CachedTeacher:
    """A teacher that runs only for images that the store does not have.

    A batch has their ``image_keys`` (B,) and its ``training_step``, from which the epoch follows.
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
        if "image_keys" not in batch:  # the dry run's batch of noise
            return self._teacher(batch)
        keys: Keys = batch["image_keys"].numpy().view(np.uint64)
        epoch = batch["training_step"] // self._steps_per_epoch
        rows, found = self._store.read(epoch, keys)
        if not found.all():
            outputs = self._teacher(batch)
            rows[~found] = self._codec.encode(outputs)[~found]
            new = ~found & self._codec.finite(outputs)
            self._store.append(epoch, keys[new], rows[new])
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
    images = {"names and labels": data.fingerprint()[:16], **_image_settings(experiment), **_lengths(data)}
    images["images"] = sampled_images(data)
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
        with experiment.placing(_DIR):
            folder = Path(section.dir) / teacher.name / f"seed_{runtime.random_seed}"
            store = Store(folder, row_bytes=codec.row_bytes, identity=identity, setting=_DIR)
        row, there = codec.row_bytes + KEY_BYTES, store.size()
        total = row * len(data) * epochs
        growth += max(0.0, total - there)
        lines.append(
            f"{teacher.name}: cache in {folder}: {size_text(row * len(data))} an epoch ({len(data):,} rows of {row:,} bytes), "
            f"{size_text(total)} for {epochs:.3g} epochs; {there:,} bytes are there"
        )
        cached.append(CachedTeacher(teacher, store, codec, steps_per_epoch=steps_per_epoch))
    with experiment.placing(_DIR):
        require_space(Path(section.dir), growth, setting=_DIR, without="set mimic.cache.topk, or remove mimic.cache")
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


def _lengths(data: Dataset) -> dict[str, str]:
    """Return the epochs of a training whose length decides the images of an epoch; empty where it does not."""
    scheduled = [each.total_epochs for each in getattr(data, "transforms", ()) if isinstance(each, Scheduled)]
    lengths = {epochs for epochs in scheduled if epochs is not None}
    return {"epochs": ", ".join(map(str, sorted(lengths)))} if lengths else {}


def sampled_images(data: Dataset) -> str:
    """Hash a few images as workers make them: other files under the same names, and a library that draws or resizes differently,
    change it. Transforms that run on the device must not be in ``data``."""
    found = sha256()
    for index in range(0, len(data), max(1, len(data) // _SAMPLED)):
        found.update(np.asarray(data[SampleKey(epoch=0, index=index)].image).tobytes())
    return found.hexdigest()[:16]
