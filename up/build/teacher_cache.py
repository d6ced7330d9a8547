"""From ``mimic.cache`` to teachers that are asked only once about an image."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import disk_usage
from typing import Any

from up.build.data import section_of
from up.build.distillation import Teaching
from up.data.records import SampleKey
from up.errors import Problem, StorageError, UserError
from up.distill.section import key_of_job
from up.tasks.experiment import Experiment
from up.distill.cache import CachedTeacher, Codec
from up.distill.mimic import Mimic
from up.distill.store import Store, size_text, sizes
from up.distill.teachers import Teacher

_LOOKED_AT = 16  # images


def with_cache(experiment: Experiment, teaching: Teaching, data: Any, *, updates_per_epoch: int, updates: int) -> Teaching:
    """The same with what teachers say kept on disk, if ``mimic.cache`` asks for it; the log tells how large that gets.

    What is kept under one seed of the run is of no use under another, and has a folder of its own. Raises ``UserError`` for
    what cannot be kept, and for a cache of another teacher or other images; ``StorageError`` when it would not fit on the disk.
    """
    section = experiment.config.mimic.cache if experiment.config.mimic else None
    if section is None:
        return teaching
    images = {"names and labels": data.fingerprint()[:16], **_ways_of_images(experiment), "images": some_images(data)}
    precision, seed = experiment.config.runtime.precision, experiment.config.runtime.random_seed
    taught, lines, growth = [], [], 0.0
    for teacher in teaching.teachers:
        codec = Codec(_widths(experiment, teaching.mimic, teacher), section.dtype, section.topk)
        identity = {
            "teacher": teacher.digest()[:16], "layers": ", ".join(codec.widths),
            "numbers": f"{section.dtype}, {'all' if section.topk is None else f'the {section.topk} largest'}",
            "precision": precision, **images,
        }
        with experiment.placing("mimic.cache.dir"):
            store = Store(Path(section.dir) / teacher.name / f"seed_{seed}", row_bytes=codec.row_bytes, identity=identity)
        size, there = sizes(codec.row_bytes, len(data), updates / updates_per_epoch), store.size()
        growth += max(0.0, size.total - there)
        lines.append(f"{teacher.name}: cache in {store.folder}: {size}; {there:,} bytes are there")
        taught.append(CachedTeacher(teacher, store, codec, updates_per_epoch=updates_per_epoch))
    with experiment.placing("mimic.cache.dir"):
        _require_space(Path(section.dir), growth)
    return replace(teaching, taught=taught, lines=[*teaching.lines, *lines])


def _widths(experiment: Experiment, mimic: Mimic, teacher: Teacher) -> dict[str, int]:
    """The vectors that a cache keeps of a teacher. Raises ``ConfigError`` for what it cannot keep."""
    section = experiment.config.mimic
    assert section is not None
    assert section.cache is not None
    problems = []
    for name, job in section.jobs.items():
        tap = job.teachers.get(teacher.name)
        place = f"{key_of_job(experiment, name)}.{teacher.name}"
        if tap is not None and tap.teacher_bn_mode == "train":
            what = "got 'train': what depends on the rest of the batch cannot be kept"
            problems.append(Problem(what, key=f"{place}.teacher_bn_mode"))
        for index, layer in enumerate(tap.mimic_name if tap is not None else ()):
            if len(teacher.shapes[layer]) != 2:
                what = f"gives {tuple(teacher.shapes[layer][1:])} for an image; a cache keeps vectors, such as logits, only"
                problems.append(Problem(what, key=f"{place}.mimic_name.{index}"))
    for term in mimic.terms:
        if term.teacher == teacher.name and section.cache.topk is not None and not term.loss.of_logits:
            what = f"caches the largest logits only, but {term.loss.name} needs full features. Remove mimic.cache.topk."
            problems.append(Problem(what, key="mimic.cache.topk"))
    experiment.raise_if_any(dict.fromkeys(problems))
    return {layer: teacher.shapes[layer][1] for layer in mimic.layers_of(teacher.name)}


def _ways_of_images(experiment: Experiment) -> dict[str, str]:
    """What, beside files and seeds, decides how an image comes to the teacher, as short hashes."""
    train = section_of(experiment, "train")
    kwargs = train.dataset.kwargs
    reader = dict(kwargs.get("image_reader") or {})
    reader["kwargs"] = {name: value for name, value in (reader.get("kwargs") or {}).items() if name != "image_dir"}
    batch_fn = train.dataloader.kwargs.batch_fn
    decided = {"transforms": kwargs.get("transformer"), "reader": reader, "mixing": batch_fn.model_dump() if batch_fn else None}
    return {name: sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16] for name, what in decided.items()}


def some_images(data: Any) -> str:
    """A short hash of a few images as a worker makes them: other files under the same names, or another release of a library
    that draws or resizes in another way, do not go unnoticed. What runs on the device is taken off ``data`` before."""
    found = sha256()
    for index in range(0, len(data), max(1, len(data) // _LOOKED_AT)):
        found.update(data[SampleKey(epoch=0, index=index)].image.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _require_space(folder: Path, needed: float) -> None:
    """Raise unless the folder may grow by ``needed`` bytes. Creates nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = disk_usage(there).free
    if needed and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written (no permission for {there}). Choose another mimic.cache.dir.")
    if needed > free:
        raise StorageError(
            f"{folder}: the cache grows by {size_text(needed)}, {size_text(free)} are free. Choose another mimic.cache.dir, "
            "set mimic.cache.topk, or leave mimic.cache out."
        )
