"""Hooks that draw what a net makes of a few images, while training goes on as if they were not there."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path, PurePath

import torch
from PIL import Image
from torch import nn

from up.data.records import Batch
from up.distributed.group import is_main
from up.engine.hooks import Hook, Outline
from up.errors import UserError
from up.files import write_atomically
from up.models.paths import require_layers
from up.tasks.cls.visualise.tapping import undisturbed

LOGGER = logging.getLogger("up")

_LONGEST_STEM = 48  # letters of up to 4 bytes: a file's name ends at 255 bytes


class Probe(Hook, ABC):
    """Draws what the net makes of a few evaluation images, at every evaluation, on the main rank.

    ``layers``: paths of modules, such as ``backbone.layer4``. The pictures go to ``save_dir``, or the run's folder and
    the hook's ``name``, under ``step{N}``; two hooks of one kind need two ``save_dir``. What cannot be drawn or
    written is a warning, once: a hook that watches ends no training.
    Errors: ``UserError`` for no images, no layers, or a layer that the net does not have.
    """

    def __init__(self, name: str, *, layers: Sequence[str], save_dir: str | None, num_images: int) -> None:
        self.name = name
        self.layers = list(layers)
        self.save_dir = save_dir
        self.num_images = num_images
        self._images: Batch | None = None
        self._warned: set[str] = set()

    @abstractmethod
    def pictures(self, images: Batch, step: int) -> Iterator[tuple[str, Image.Image]]:
        """The name of a file, without its ending, and what it shows."""

    def check(self, model: nn.Module, class_names: Sequence[str] | None) -> None:
        require_layers(model, self.layers, hook=self.name)

    def on_start(self, outline: Outline, step: int) -> None:
        self.outline = outline
        if outline.sample_batch is None:
            self.warn("the run evaluates no images, so there is nothing to draw.")

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if not is_main() or self.outline.sample_batch is None:
            return
        folder = Path(self.save_dir) if self.save_dir else self.outline.folder / self.name
        try:
            with undisturbed(self.outline.model):
                self._draw(folder / f"step{step}", step)
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            self.warn(str(error))

    def warn(self, message: str) -> None:
        """Say something in the log, but not at every evaluation again."""
        if message not in self._warned and is_main():
            self._warned.add(message)
            LOGGER.warning("%s: %s", self.name, message)

    def _draw(self, folder: Path, step: int) -> None:
        if self._images is None:
            assert self.outline.sample_batch is not None
            self._images = first_images(self.outline.sample_batch(), self.num_images)
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures(self._images, step):
            write_atomically(folder / f"{name}.png", partial(picture.save, format="PNG"))


def first_images(batch: Batch, number: int) -> Batch:
    """The first images of a batch with their names and labels, copied so that the rest of it need not stay in memory."""
    with torch.inference_mode(False):  # a clone made here may be differentiated, wherever the batch was made
        fields = {name: batch[name][:number].clone() for name in ("image", "gt") if batch.get(name) is not None}
    return Batch(fields, filename=list(batch["filename"][:number]))


def file_stems(filenames: Sequence[str]) -> list[str]:
    """``dogs/1.jpg, cats/1.jpg`` as ``1, 1_2``: short names of files, each once."""
    stems: list[str] = []
    for filename in filenames:
        stem = PurePath(filename).stem[:_LONGEST_STEM] or "image"
        candidates = chain([stem], (f"{stem}_{number}" for number in count(2)))
        stems.append(next(name for name in candidates if name not in stems))
    return stems
