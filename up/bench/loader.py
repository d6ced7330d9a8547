"""Rows of the loader: files to augmented uint8 images, on one core and through workers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from up.bench.cells import OURS, BenchCell, Reading, Row, Settings, Target
from up.types import Kwargs

if TYPE_CHECKING:
    from up.data.records import Dataset

SIZE = 224
FAST = "fast_decode"
"""Ours with ``fast_decode: true``: JPEG files are decoded at a half or a quarter of their size where the crop allows it."""
_CROP: Sequence[Kwargs] = [
    {"type": "torch_random_resized_crop", "kwargs": {"size": SIZE}},
    {"type": "torch_random_horizontal_flip"},
]
_STRIKES = {"type": "torch_random_augmentationIncre", "kwargs": {"n": 2, "m": 7, "magnitude_std": 0.5}}
_JITTER = {"type": "torch_color_jitter", "kwargs": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}}
_RESIZE: Sequence[Kwargs] = [
    {"type": "torch_resize", "kwargs": {"size": 256}},
    {"type": "torch_center_crop", "kwargs": {"size": SIZE}},
]
TRANSFORMS: Mapping[str, Sequence[Kwargs]] = {
    "crop": _CROP,
    "strikes": [*_CROP, _STRIKES],
    "jitter": [*_CROP, _JITTER],
    "evaluation": _RESIZE,
}
_OF_TIMM: Mapping[str, Kwargs] = {
    "crop": {},
    "strikes": {"auto_augment": "rand-m7-mstd0.5-inc1"},
    "jitter": {"color_jitter": 0.4},
    "evaluation": {"is_training": False, "crop_pct": SIZE / 256},
}
_WORKERS_BATCH = 64


def _row(name: str, title: str, transforms: str, size: str, targets: Sequence[Target], bound: str) -> Row:
    chosen = {"transforms": transforms, "size": size}
    cells = [
        BenchCell(OURS, f"{__name__}:ours", chosen),
        *([BenchCell(FAST, f"{__name__}:ours", {**chosen, "fast": True})] if transforms == "crop" else ()),
        BenchCell("timm", f"{__name__}:of_timm", chosen, is_peer=True),
        BenchCell("torchvision", f"{__name__}:of_torchvision", chosen, is_peer=True),
        BenchCell("bare", f"{__name__}:bare", {"size": size}, is_peer=True),
    ]
    return Row(name, title, "images/s", cells, targets, bound, prepare=_prepared(size), threads=1)


def _prepared(size: str) -> Sequence[BenchCell]:
    return [BenchCell("photos", "up.bench.images:prepare_photos", {"size": size})]


def _cache_row() -> Row:
    cells = [
        BenchCell(OURS, f"{__name__}:ours_from_cache", {"form": "rgb"}),
        BenchCell("yuv420", f"{__name__}:ours_from_cache", {"form": "yuv420"}),
        BenchCell("files", f"{__name__}:ours", {"transforms": "crop", "size": "500"}),
    ]
    forms = [BenchCell(form, f"{__name__}:prepare_cache", {"form": form}) for form in ("rgb", "yuv420")]
    title = "The same from `up data cache` (rgb, shorter side 256), next to our own reading of the files"
    bound = "The antialiased resize of the crop, and Python's share of a sample; nothing is decoded."
    targets = [Target(2.0, "at least", "files")]
    return Row("loader.cache-500", title, "images/s", cells, targets, bound, [*_prepared("500"), *forms], threads=1)


def _workers_row() -> Row:
    cells = [BenchCell(OURS, f"{__name__}:ours_in_workers"), BenchCell("timm", f"{__name__}:timm_in_workers", is_peer=True)]
    bound = "As the row on one core, times the workers; what remains of the difference is shipping: one block of uint8 a batch."
    return Row(
        "loader.workers-500",
        "Batches of 64 from one worker a CPU, RandomResizedCrop 224 and flip, JPEG of 500 pixels",
        "images/s",
        cells,
        [Target(1.0, "at least", "timm")],
        bound,
        prepare=_prepared("500"),
    )


ROWS = [
    _row(
        "loader.crop-500",
        "RandomResizedCrop 224 and flip, JPEG of 500 pixels (70 KB), one core",
        "crop",
        "500",
        [Target(2.0, "at least", "timm"), Target(0.9, "at least", "bare")],
        "Huffman decoding of the rows down to the crop's last one, a third of a sample: codes of blocks outside must be read, too.",
    ),
    _row(
        "loader.crop-2000",
        "The same, JPEG of 2,000 pixels (1.1 MB)",
        "crop",
        "2000",
        [Target(4.0, "at least", "timm")],
        "Huffman decoding down to the crop's last row, about half of a sample, then the inverse transform of the crop's blocks.",
    ),
    _row(
        "loader.strikes-500",
        "Crop, flip and RandAugment with increasing magnitudes (timm: rand-m7-mstd0.5-inc1), 500 pixels",
        "strikes",
        "500",
        [Target(1.6, "at least", "timm")],
        "The crop, then two operations an image on 224 x 224 pixels, rotations and shears the most expensive of them.",
    ),
    _row(
        "loader.jitter-500",
        "Crop, flip and colour jitter of .4, 500 pixels",
        "jitter",
        "500",
        [Target(2.0, "at least", "timm")],
        "The crop, then brightness, contrast and saturation in random order, each one pass over 224 x 224 pixels.",
    ),
    _row(
        "loader.evaluation-500",
        "Resize 256 and CenterCrop 224, 500 pixels",
        "evaluation",
        "500",
        [],
        "Full decoding: evaluation never scales in the decoder, so that its pixels are those of Pillow.",
    ),
    _cache_row(),
    _workers_row(),
]


def dataset_of(folder: Path, transforms: Sequence[Kwargs], **more: object):  # type: ignore[no-untyped-def]
    """Build the data set of ``folder`` as a YAML file would; ``more`` are further keyword arguments of it."""
    from up.build.experiment import all_tables, find_task
    from up.config.parts import build_part

    tables = all_tables(find_task("cls"), [])
    kwargs = {
        "meta_file": str(folder),
        "meta_type": "image_folder",
        "image_reader": {"type": "auto"},
        "transformer": [
            *transforms,
            {"type": "to_tensor"},
            {"type": "normalize", "kwargs": {"mean": [0.5] * 3, "std": [0.25] * 3}},
        ],
        **more,
    }
    return build_part({"type": "cls", "kwargs": kwargs}, "dataset", tables, {"seed": 0})


def prepare_cache(settings: Settings, form: str) -> None:
    """Build the image cache of the photographs of 500 pixels, unless it is there."""
    cache_of(settings, form)


def cache_of(settings: Settings, form: str) -> Path:
    """Return the image cache of a form; build it where needed."""
    from up import __version__
    from up.__main__ import main as command
    from up.bench.images import made, photos

    images = photos(settings, "500")

    def write(folder: Path) -> None:
        words = ["data", "cache", str(images), "--out", str(folder), "--form", form, "--reader", "auto"]
        if command([*words, "--short-side", "256"]):
            raise RuntimeError("the cache could not be built")

    return made(settings.folder / f"cache-auto-{form}-{images.name}-{__version__}", write)


def ours_from_cache(settings: Settings, form: str) -> Reading:
    """Measure our data set on an image cache: crops of stored pixels instead of decoding."""
    from up.bench.images import photos

    data = dataset_of(photos(settings, "500"), TRANSFORMS["crop"], cache=str(cache_of(settings, form)))
    return _by_key(settings, data)


def ours(settings: Settings, transforms: str, size: str, fast: bool = False) -> Reading:
    """Measure our data set: keyed randomness, reading, transforms, uint8 tensors (3, H, W)."""
    from up.bench.images import photos

    reader = {"type": "auto", "kwargs": {"fast_decode": fast}}
    return _by_key(settings, dataset_of(photos(settings, size), TRANSFORMS[transforms], image_reader=reader))


def _by_key(settings: Settings, data: Dataset) -> Reading:
    from up.bench.timing import rate
    from up.data.records import SampleKey

    def work(index: int) -> int:
        data[SampleKey(*divmod(index, len(data)))]
        return 1

    return Reading(rate(settings, work))


def _timm_dataset(settings: Settings, size: str):  # type: ignore[no-untyped-def]
    from timm.data import create_dataset

    from up.bench.images import photos

    return create_dataset("", root=str(photos(settings, size)))


def of_timm(settings: Settings, transforms: str, size: str) -> Reading:
    """Measure timm's data set with ``create_transform``: Pillow, then uint8 arrays (3, H, W)."""
    from timm.data import create_transform

    data = _timm_dataset(settings, size)
    chosen = {"is_training": True, "color_jitter": None, **_OF_TIMM[transforms]}
    data.transform = create_transform(SIZE, use_prefetcher=True, interpolation="bilinear", **chosen)
    return Reading(_rate_of_reading(settings, data.__getitem__, len(data)))


def of_torchvision(settings: Settings, transforms: str, size: str) -> Reading:
    """Measure torchvision's ``ImageFolder`` with its transforms v2 of uint8 tensors."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from up.bench.images import photos

    augment = {
        "crop": [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()],
        "evaluation": [v2.Resize(256, antialias=True), v2.CenterCrop(SIZE)],
    }
    augment["strikes"] = [*augment["crop"], v2.RandAugment(2, 7)]
    augment["jitter"] = [*augment["crop"], v2.ColorJitter(0.4, 0.4, 0.4)]
    data = ImageFolder(str(photos(settings, size)), v2.Compose([v2.PILToTensor(), *augment[transforms]]))
    torch.manual_seed(0)
    return Reading(_rate_of_reading(settings, data.__getitem__, len(data)))


def bare(settings: Settings, size: str) -> Reading:
    """Measure the fastest full decoder that is installed, on encoded files in memory: no transform at all."""
    from up.bench.images import photos

    files = [np.fromfile(path, dtype=np.uint8) for path in sorted(photos(settings, size).rglob("*.jpg"))]
    decode = _decoder()
    return Reading(_rate_of_reading(settings, lambda index: decode(files[index]), len(files)))


def _decoder() -> Callable[[np.ndarray[tuple[int], np.dtype[np.uint8]]], object]:
    try:
        import simplejpeg  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        warnings.simplefilter("ignore")  # deprecated, and the fastest decoder that every installation has
        return lambda encoded: decode_jpeg(torch.from_numpy(encoded), ImageReadMode.RGB)
    return lambda encoded: simplejpeg.decode_jpeg(encoded, fastdct=False, fastupsample=False)


def _rate_of_reading(settings: Settings, read: Callable[[int], object], number: int) -> float:
    from up.bench.timing import rate

    def work(index: int) -> int:
        read(index % number)
        return 1

    return rate(settings, work)


def ours_in_workers(settings: Settings) -> Reading:
    """Measure batches from our loader, with one worker a CPU."""
    from up.bench.images import photos
    from up.bench.timing import rate
    from up.data.loader import Workers, fetched
    from up.data.records import SampleKey

    data = dataset_of(photos(settings, "500"), TRANSFORMS["crop"])
    batch = settings.size(_WORKERS_BATCH, 2)
    keys = ([SampleKey(number, index % len(data)) for index in range(batch)] for number in count())
    batches = fetched(data, keys, workers=Workers(num_workers=settings.threads))

    def work(_: int) -> int:
        return len(next(batches)["filename"])

    found = rate(settings, work, warm_up=2 * settings.threads)
    batches.close()  # type: ignore[attr-defined]
    return Reading(found)


def timm_in_workers(settings: Settings) -> Reading:
    """Measure batches from timm's loader, with one worker a CPU."""
    import torch
    from timm.data import create_loader

    from up.bench.timing import rate

    data, batch = _timm_dataset(settings, "500"), settings.size(_WORKERS_BATCH, 2)
    data.reader.samples *= 4096 * batch // len(data.reader.samples)  # more than are read: an epoch never ends
    loader = create_loader(
        data,
        (3, SIZE, SIZE),
        batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=settings.threads,
        device=torch.device("cpu"),
    )
    batches = iter(loader.loader)  # uint8, as it comes from the workers: ours is measured there, too

    def work(_: int) -> int:
        return len(next(batches)[1])

    return Reading(rate(settings, work, warm_up=2 * settings.threads))
