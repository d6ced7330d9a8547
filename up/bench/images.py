"""Generated images that cost what photographs cost: a 1/f spectrum with colour, the same bytes on every machine.

They are made once and stay in the user's cache folder (``XDG_CACHE_HOME``, by default ``~/.cache``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.bench.cells import Settings
from up.files import TEMPORARY, make_folder

CLASSES = 4
_CONTRAST, _CHROMA = 50.0, 0.35  # levels of the luma's standard deviation, and the share of it in each chroma


class Photos(NamedTuple):
    """A kind of generated photographs: size in pixels, number, slope of the spectrum, and quality of the JPEG file."""

    width: int
    height: int
    number: int
    slope: float
    quality: int


PHOTOS = {"500": Photos(500, 375, 64, 1.25, 85), "2000": Photos(2000, 1500, 16, 1.2, 87)}  # about 70 KB and 1.1 MB each
_TIMES = 400  # names of a photograph in the folder of many
PNGS, PNG_SIDE, PNG_CLASSES = 3566, 64, 10


def cache_folder() -> Path:
    """Return the folder of generated files. Raises ``StorageError`` if it cannot be created."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "up-bench"
    make_folder(folder)
    return folder


def prepare_photos(settings: Settings, size: str) -> None:
    """Generate the photographs of a size, unless they are there."""
    photos(settings, size)


def prepare_pngs(settings: Settings) -> None:
    """Generate the PNG images, unless they are there."""
    for phase in ("train", "val"):
        pngs(settings, phase)


def photos(settings: Settings, size: str) -> Path:
    """Return the folder of photographs of a size (``500`` or ``2000``), in folders of classes; generate them where needed."""
    kind = PHOTOS[size]
    number = settings.size(kind.number, 2 * CLASSES)

    def write(folder: Path) -> None:
        draw = np.random.default_rng(0)
        for index in range(number):
            image = natural(draw, kind.width, kind.height, kind.slope)
            image.save(_in_class(folder, index, CLASSES) / f"{index:03}.jpg", quality=kind.quality)

    return made(settings.folder / f"photos-{size}-{number}", write)


def many_photos(settings: Settings) -> Path:
    """Return a folder with every photograph of 500 pixels under many names: 25,600 files, which take the space of 64."""
    once = photos(settings, "500")
    times = settings.size(_TIMES, 1)

    def write(folder: Path) -> None:
        for path in sorted(once.rglob("*.jpg")):
            of_class = folder / path.parent.name
            of_class.mkdir(exist_ok=True)
            for number in range(times):
                os.link(path, of_class / f"{path.stem}-{number:03}.jpg")

    return made(settings.folder / f"many-{once.name}-{times}", write)


def prepare_many_photos(settings: Settings) -> None:
    """Make the folder of many photographs, unless it is there."""
    many_photos(settings)


def pngs(settings: Settings, phase: str) -> Path:
    """Return a folder of PNG images of 64 x 64 pixels in 10 classes, whose colours differ; ``phase`` is train or val."""
    whole = PNGS if phase == "train" else PNGS // 4
    number = settings.size(whole, 2 * PNG_CLASSES)

    def write(folder: Path) -> None:
        draw = np.random.default_rng(0 if phase == "train" else 1)
        tints = np.random.default_rng(2).integers(0, 64, (PNG_CLASSES, 3))
        large = np.asarray(natural(draw, 1024, 1024, 1.2)) // 2
        for index in range(number):
            x, y = draw.integers(0, 1024 - PNG_SIDE, 2)
            tinted = large[y : y + PNG_SIDE, x : x + PNG_SIDE] + tints[index % PNG_CLASSES].astype(np.uint8)
            Image.fromarray(tinted).save(_in_class(folder, index, PNG_CLASSES) / f"{index:04}.png")

    return made(settings.folder / f"pngs-{phase}-{number}", write)


def made(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return ``folder``; where it does not exist, ``write`` fills another, which gets its name once it is complete."""
    if not folder.exists():
        temporary = folder.with_name(f"{TEMPORARY}{os.getpid()}-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        write(temporary)
        temporary.rename(folder)
    return folder


def natural(draw: np.random.Generator, width: int, height: int, slope: float) -> Image.Image:
    """Draw an image whose amplitudes fall with the frequency to the power of ``slope``, as those of photographs do."""
    luma, blue, red = (_plane(draw, width, height, slope) for _ in range(3))
    planes = [128 + _CONTRAST * luma, 128 + _CONTRAST * _CHROMA * blue, 128 + _CONTRAST * _CHROMA * red]
    bands = [Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8)) for plane in planes]
    return Image.merge("YCbCr", bands).convert("RGB")


def _plane(draw: np.random.Generator, width: int, height: int, slope: float) -> NDArray[np.float64]:
    """Draw a plane (height, width) of mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(width, height)) ** slope
    phase = np.exp(2j * np.pi * draw.random(amplitude.shape))
    plane: NDArray[np.float64] = np.fft.irfft2(amplitude * phase, (height, width))
    plane -= plane.mean()
    plane /= plane.std()
    return plane


def _in_class(folder: Path, index: int, classes: int) -> Path:
    of_class = folder / f"class{index % classes}"
    of_class.mkdir(exist_ok=True)
    return of_class
