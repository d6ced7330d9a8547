"""Prediction with a package: onnxruntime, numpy and Pillow. Nothing here may import torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from up.bundle.heads import scores_of
from up.bundle.manifest import Head
from up.bundle.package import Package, open_package
from up.bundle.predictions import Answer, Guess, best_guesses
from up.bundle.prefetch import grouped, loaded_ahead
from up.bundle.preprocess import ImageSource, Preprocessing
from up.bundle.session import Floats, Session
from up.data.bad_images import BadImage
from up.data.decoding import Color


@dataclass
class Timing:
    """Where the time of a prediction went, in seconds."""

    images: int = 0
    loading: float = 0.0  # of all threads together
    running: float = 0.0
    waiting: float = 0.0  # for images, while nothing ran


@dataclass
class BundlePredictor:
    """``predict(images)`` gives an ``Answer`` an image, in order; one that cannot be read is answered with its error."""

    package: Package
    session: Session
    topk: int | None = None  # None: what the package says
    batch_size: int = 32
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        self._prepare = Preprocessing(self.package.manifest.preprocess, self.package.input_size)
        self.heads = self.package.manifest.heads

    @property
    def background(self) -> Color | None:
        """What transparent images are composited over; None where their alpha channel is ignored."""
        return self._prepare.background

    @classmethod
    def open(cls, path: Path, *, provider: str = "cpu", topk: int | None = None, batch_size: int = 32) -> BundlePredictor:
        """Of the package at ``path``. Raises ``PackageError`` for one that is damaged, ``UserError`` for a provider."""
        package = open_package(path)
        return cls(package, Session(package.model, package.label, provider=provider), topk, batch_size)

    def predict(self, images: Iterable[ImageSource], *, threads: int = 2) -> Iterator[Answer]:
        """Images (paths, encoded bytes, Pillow images, levels (H, W, 3)) are decoded in threads while the graph runs."""
        for number, (source, found) in enumerate(self.scored(images, threads=threads)):
            name = name_of(source, number)
            yield Answer(name, error=found) if isinstance(found, str) else self._answer(name, found)

    def scored(self, images: Iterable[ImageSource], *, threads: int = 2) -> Iterator[tuple[Any, list[Floats] | str]]:
        """Every image with the probabilities (C,) of each head, or why it cannot be read."""
        for sources, loaded in self._batches(images, threads):
            scores = iter(self._scores([image for image in loaded if not isinstance(image, str)]))
            for source, image in zip(sources, loaded, strict=True):
                yield source, image if isinstance(image, str) else next(scores)
            self.timing.images += len(sources)

    def scores(self, batch: Floats) -> list[Floats]:
        """Probabilities (N, C) of each head for inputs (N, 3, H, W)."""
        return scores_of(self.session(batch), self.heads, activated=self.package.activated)

    def _batches(self, images: Iterable[ImageSource], threads: int) -> Iterator[tuple[list[Any], list[Floats | str]]]:
        ahead = 2 * self.batch_size + threads
        groups = grouped(loaded_ahead(self._load, images, threads=threads, ahead=ahead), self.batch_size)
        while True:
            begun = time.perf_counter()
            group = next(groups, None)
            self.timing.waiting += time.perf_counter() - begun
            if group is None:
                return
            yield [source for source, _ in group], [loaded for _, loaded in group]

    def _load(self, source: ImageSource) -> Floats | str:
        begun = time.perf_counter()
        try:
            return self._prepare(source)
        except BadImage as bad:
            return bad.reason
        finally:
            self.timing.loading += time.perf_counter() - begun

    def _scores(self, inputs: Sequence[Floats]) -> Iterator[list[Floats]]:
        """For each input the scores (C,) of each head."""
        if not inputs:
            return
        begun = time.perf_counter()
        heads = self.scores(np.stack(inputs))
        self.timing.running += time.perf_counter() - begun
        yield from ([head[row] for head in heads] for row in range(len(inputs)))

    def _answer(self, name: str, scores: Sequence[Floats]) -> Answer:
        return Answer(name, [self._guesses(own, head) for own, head in zip(scores, self.heads, strict=True)])

    def _guesses(self, scores: Floats, head: Head) -> list[Guess]:
        present = None if head.thresholds is None else scores > np.array(head.thresholds, dtype=np.float32)
        return best_guesses(scores, head.labels, topk=self.topk, default=head.topk, present=present)


class Model:
    """A package, ready to predict: ``up.deploy.load(path).predict(images)``."""

    def __init__(self, predictor: BundlePredictor, threads: int) -> None:
        self._predictor = predictor
        self._threads = threads

    @property
    def manifest(self) -> dict[str, Any]:
        """All that ``up_bundle.json`` says."""
        return self._predictor.package.manifest.model_dump(mode="json")

    @property
    def labels(self) -> list[list[str]]:
        """The names of the classes of each head."""
        return [head.labels for head in self._predictor.heads]

    def predict(self, images: ImageSource | Iterable[ImageSource]) -> list[Answer]:
        """An answer for each image: a path, encoded bytes, a Pillow image, levels (H, W, 3) in RGB, or several of them.

        ``answer.heads[0]`` lists the best classes of the (first) head, ``answer.error`` says why there are none.
        """
        return list(self._predictor.predict(_several(images), threads=self._threads))

    def scores(self, images: ImageSource | Iterable[ImageSource]) -> list[list[Floats]]:
        """For each image the probabilities (C,) of each head. Raises ``BadImage``."""
        found = []
        for number, (source, scores) in enumerate(self._predictor.scored(_several(images), threads=self._threads)):
            if isinstance(scores, str):
                raise BadImage(name_of(source, number), scores)
            found.append(scores)
        return found


def name_of(source: ImageSource, number: int) -> str:
    """The path of an image, or what it is called that has none."""
    return str(source) if isinstance(source, (str, Path)) else f"image {number}"


def _several(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """One image as a list of one; an array (N, H, W, 3) is N of them."""
    one = isinstance(images, (str, Path, bytes, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4)
    several: Iterable[ImageSource] = cast(Any, [images] if one else images)
    return several
