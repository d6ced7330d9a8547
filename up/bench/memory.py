"""Rows of the memory: a meta file of the length of ImageNet-1k, once and in a worker, and growth over many images."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target

if TYPE_CHECKING:
    from up.data.records import Dataset

_LINES, _FEW = 1_281_167, 1000
_IMAGES = 50_000
_META = [BenchCell("meta", f"{__name__}:prepare_meta")]
ROWS = [
    Row(
        "memory.read",
        "Reading a meta file of 1,281,167 lines",
        "s",
        [BenchCell(OURS, f"{__name__}:read"), BenchCell("dicts", f"{__name__}:read", {"of_dicts": True})],
        [Target(0.8, "at most")],
        "Splitting each line at its last space and parsing its label: Python's methods of bytes, line by line.",
        _META,
        threads=1,
    ),
    Row(
        "memory.once",
        "Memory of its list",
        "MB",
        [BenchCell(OURS, f"{__name__}:held"), BenchCell("dicts", f"{__name__}:held", {"of_dicts": True})],
        [Target(100.0, "at most")],
        "The bytes of the names, with an offset of 4 bytes and a label of 8 bytes each.",
        _META,
        threads=1,
    ),
    Row(
        "memory.worker",
        "Memory that a forked worker adds once it has read every entry",
        "MB",
        [BenchCell(OURS, f"{__name__}:in_worker"), BenchCell("dicts", f"{__name__}:in_worker", {"of_dicts": True})],
        [Target(5.0, "at most")],
        "Pages that the worker writes: arrays have one reference count, so their pages stay shared.",
        _META,
        threads=1,
    ),
    Row(
        "memory.flat",
        "Growth of a process over 50,000 images, after the first 2,000",
        "MB",
        [BenchCell(OURS, f"{__name__}:growth")],
        [Target(5.0, "at most")],
        "Nothing is kept of an image; what remains is the allocator's.",
        [BenchCell("pngs", "up.bench.images:prepare_pngs")],
        threads=1,
    ),
]


def prepare_meta(settings: Settings) -> None:
    """Write the meta file, unless it is there."""
    _meta(settings)


def _meta(settings: Settings) -> Path:
    from up.bench.images import made

    lines = settings.size(_LINES, _FEW)

    def write(folder: Path) -> None:
        with (folder / "train.txt").open("w", encoding="ascii") as file:
            file.writelines(f"n{at // 1300:08}/n{at // 1300:08}_{at:07}.JPEG {at // 1300 % 1000}\n" for at in range(lines))

    return made(settings.folder / f"meta-{lines}", write) / "train.txt"


def _list(path: Path, *, of_dicts: bool) -> object:
    """Read a meta file: our data set, or the list of dicts that many data sets keep."""
    if of_dicts:
        with path.open(encoding="ascii") as file:
            return [{"filename": name, "label": int(label)} for name, label in (line.split() for line in file)]
    return _dataset(path, "imagenet")


def _dataset(path: Path, meta_type: str) -> Dataset:
    from up.build.experiment import all_tables, find_task
    from up.config.parts import build_part

    reader = {"type": "fs_pillow", "kwargs": {"image_dir": str(path.parent)}}
    kwargs = {"meta_file": str(path), "meta_type": meta_type, "image_reader": reader, "transformer": [{"type": "to_tensor"}]}
    made: Dataset = build_part({"type": "cls", "kwargs": kwargs}, "dataset", all_tables(find_task("cls"), []), {"seed": 0})
    return made


def _warm() -> None:
    """Import what building a data set needs."""
    from up.build.experiment import all_tables, find_task

    all_tables(find_task("cls"), [])["dataset"].get("cls")


def read(settings: Settings, of_dicts: bool = False) -> Reading:
    """Measure the time to read the meta file."""
    from up.bench.timing import clock_of

    _warm()
    path, clock = _meta(settings), clock_of(settings)
    path.read_bytes()
    begun = clock()
    held = _list(path, of_dicts=of_dicts)
    taken = clock() - begun
    del held
    return Reading(taken)


def held(settings: Settings, of_dicts: bool = False) -> Reading:
    """Measure the memory of the list, once it is read."""
    _warm()
    path = _meta(settings)
    before = private_megabytes()
    kept = _list(path, of_dicts=of_dicts)
    gc.collect()
    found = private_megabytes() - before
    del kept
    return Reading(max(found, 0.01))


def in_worker(settings: Settings, of_dicts: bool = False) -> Reading:
    """Measure the private memory of a forked process after it has read every entry."""
    _warm()
    kept = _list(_meta(settings), of_dicts=of_dicts)
    gc.collect()
    gc.freeze()
    number = settings.size(_LINES, _FEW)
    files = getattr(kept, "files", None)

    def entry(index: int) -> object:
        return files.path_of(index) if files is not None else dict(kept[index])  # type: ignore[index]

    def visit() -> None:
        for index in range(number):
            entry(index)

    return Reading(max(in_fork(lambda: _growth_of(visit)), 0.01))


def in_fork(measure: Callable[[], float]) -> float:
    """Return what ``measure`` returns in a forked process."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writes, repr(measure()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    with os.fdopen(reads) as file:
        return float(file.read())


def _growth_of(visit: Callable[[], None]) -> float:
    before = private_megabytes()
    visit()
    return private_megabytes() - before


def growth(settings: Settings) -> Reading:
    """Measure how much a process grows while it reads and transforms images."""
    from up.bench.images import pngs
    from up.data.records import SampleKey

    data = _dataset(pngs(settings, "train"), "image_folder")
    images, first, begun = settings.size(_IMAGES, 20), settings.size(2000, 10), time.perf_counter()
    before = 0.0
    for index in range(images):
        if index == first:
            gc.collect()
            before = private_megabytes()
        data[SampleKey(*divmod(index, len(data)))]
    gc.collect()
    return Reading(max(private_megabytes() - before, 0.01), {"images/s": images / (time.perf_counter() - begun)})


def private_megabytes() -> float:
    """Return the memory that this process shares with no other, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6
