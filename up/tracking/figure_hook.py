"""Base of hooks that draw figures of a few evaluation images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from up.data.records import Batch
from up.distributed.group import is_main
from up.engine.hooks import Hook, Outline
from up.errors import Ending, UserError
from up.figures import Floats, Pixels, missing_matplotlib
from up.files import write_bytes
from up.models.feature_hooks import undisturbed
from up.text import unused_name
from up.tracking.log import LOGGER

_LONGEST_STEM = 48  # letters of up to 4 bytes: a file's name ends at 255 bytes


class FigureHook(Hook, ABC):
    """Draws figures of a few evaluation images at every evaluation, on the main rank.

    ``layers``: paths of modules, such as ``backbone.layer4``. The figures go to ``save_dir``, or the run's folder and
    the hook's ``name``, under ``step{N}``; two hooks of one kind need two ``save_dir``. A failure to draw or write is a
    warning, logged once: a hook never ends training.
    Raises: ``UserError`` for no images, and from ``check`` if matplotlib is not installed.
    """

    def __init__(self, name: str, *, layers: Sequence[str], save_dir: str | None, num_images: int) -> None:
        self.name = name
        self.layers = list(layers)
        self.save_dir = save_dir
        self.num_images = num_images
        self._images: Batch | None = None
        self._warned: set[str] = set()

    @abstractmethod
    def figures(self, images: Batch, step: int) -> Iterator[tuple[str, bytes]]:
        """Yield the name of each file, without suffix, and its PNG."""

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        if (line := missing_matplotlib(self.name)) is not None:
            raise UserError(f"{line}, or remove the hook.")

    def on_start(self, outline: Outline, step: int) -> None:
        self.outline = outline
        if outline.sample_batch is None:
            self.warn("the run evaluates no images, so there is nothing to draw.")

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if not is_main() or self.outline.sample_batch is None:
            return
        folder = Path(self.save_dir) if self.save_dir else self.outline.folder / self.name
        try:
            if self._images is None:
                self._images = first_images(self.outline.sample_batch(), self.num_images)
            (folder / f"step{step}").mkdir(parents=True, exist_ok=True)
            with undisturbed(self.outline.model):
                for name, png in self.figures(self._images, step):
                    write_bytes(folder / f"step{step}" / f"{name}.png", png)
        except Exception as error:  # of the net, matplotlib, a font or the disk: a figure must not end the run
            self.warn(str(error) if isinstance(error, Ending | OSError) else f"{type(error).__name__}: {error}")

    def warn(self, message: str) -> None:
        """Log a warning, each message once."""
        if message not in self._warned and is_main():
            self._warned.add(message)
            LOGGER.warning("%s: %s", self.name, message)


def first_images(batch: Batch, number: int) -> Batch:
    """Copy the first images of a batch with their names and labels, so that the rest can be freed."""
    with torch.inference_mode(False):  # so that the clones can be differentiated
        fields = {name: batch[name][:number].clone() for name in ("image", "gt") if isinstance(batch.get(name), Tensor)}
    return Batch(fields, filename=list(batch["filename"][:number]))


def file_stems(filenames: Sequence[str]) -> list[str]:
    """Shorten file names to unique stems: ``dogs/1.jpg, cats/1.jpg`` becomes ``1, 1_2``."""
    stems: list[str] = []
    for filename in filenames:
        stem = PurePath(filename).stem[:_LONGEST_STEM] or "image"
        stems.append(unused_name(stem, stems, "_"))
    return stems


def photo(image: Tensor) -> Pixels:
    """Convert an image (C, H, W) in any units to pixels (H, W, 3), its minimum black and its maximum white."""
    levels = stretched(image.detach().float().cpu().numpy()).transpose(1, 2, 0)
    colours = levels if levels.shape[2] == 3 else levels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return np.asarray((255 * colours).round(), dtype=np.uint8)


def stretched(values: npt.ArrayLike) -> Floats:
    """Scale ``values`` to 0..1; 0 where they are all equal, or not finite."""
    numbers = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = numbers.min(), numbers.max()
    return np.asarray((numbers - low) / (high - low) if high > low else np.zeros_like(numbers))
