"""Prediction with a package: onnxruntime, numpy and Pillow. Nothing here may import torch."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from up.bundle.answers import Answer, Floats, Outputs
from up.bundle.operations import Placement
from up.bundle.package import Package, open_package
from up.bundle.predictions import Prediction
from up.bundle.prefetch import grouped, prefetched
from up.bundle.preprocess import ImageSource, Preprocessing
from up.bundle.session import Session
from up.data.bad_images import BadImage
from up.data.decoding import Color, read_rgb
from up.types import Json

Loaded = TypeVar("Loaded")


@dataclass
class Timing:
    """Where the time of a prediction went, in seconds."""

    images: int = 0
    loading: float = 0.0  # of all threads together
    running: float = 0.0
    waiting: float = 0.0  # for images, while nothing ran


class Predictor(ABC, Generic[Loaded]):
    """``predict(images)`` yields a ``Prediction`` per image, in order; an image that cannot be read has its error instead.

    ``answer`` makes predictions of the outputs; ``topk`` limits how many it lists (None: what the answer says).
    """

    def __init__(self, answer: Answer, background: Color | None, *, topk: int | None = None, batch_size: int = 32) -> None:
        self.answer, self.topk, self.batch_size = answer, topk, batch_size
        self._background = background  # what transparent images are composited over; None where alpha is ignored
        self.timing = Timing()

    @abstractmethod
    def load(self, source: ImageSource) -> tuple[Loaded, Placement | None]:
        """Read and prepare one image, in any thread; where it is in the input, if results are of places. Raises ``BadImage``."""

    @abstractmethod
    def run(self, images: Sequence[Loaded]) -> Outputs:
        """The outputs for prepared images."""

    def predict(self, images: Iterable[ImageSource], *, threads: int = 2) -> Iterator[Prediction]:
        """Predict for images (paths, encoded bytes, Pillow images, levels (H, W, 3)), decoded in threads meanwhile."""
        number = 0
        for group, outputs in self.batches(images, threads=threads):
            results = iter(self.answer.decode(outputs, self.topk) if outputs else ())
            for source, read in group:
                name = name_of(source, number)
                if isinstance(read, str):
                    yield Prediction(name, error=read)
                else:
                    result = next(results)
                    yield Prediction(name, result if read is None else result.on_image(read))
                number += 1

    def picture(self, file: str) -> Image.Image:
        """The image to draw predictions on."""
        return read_rgb(file, background=self._background)

    def batches(
        self, images: Iterable[ImageSource], *, threads: int
    ) -> Iterator[tuple[list[tuple[ImageSource, Placement | str | None]], Outputs]]:
        """Groups of images, each with its placement or why it cannot be read, and the outputs for those that can."""
        loaded = prefetched(self._load, images, threads=threads, limit=2 * self.batch_size + threads)
        groups = grouped(loaded, self.batch_size)
        while True:
            begun = time.perf_counter()
            group = next(groups, None)
            self.timing.waiting += time.perf_counter() - begun
            if group is None:
                return
            good = [read[0] for _, read in group if not isinstance(read, str)]
            begun = time.perf_counter()
            outputs = self.run(good) if good else {}
            self.timing.running += time.perf_counter() - begun
            yield [(source, read if isinstance(read, str) else read[1]) for source, read in group], outputs
            self.timing.images += len(group)

    def _load(self, source: ImageSource) -> tuple[Loaded, Placement | None] | str:
        begun = time.perf_counter()
        try:
            return self.load(source)
        except BadImage as bad:
            return bad.reason
        finally:
            self.timing.loading += time.perf_counter() - begun


class BundlePredictor(Predictor[Floats]):
    """Predicts with a package."""

    def __init__(self, package: Package, session: Session, *, topk: int | None = None, batch_size: int = 32) -> None:
        self.package, self.session = package, session
        self._prepare = Preprocessing(package.manifest.preprocess, package.manifest.input_size)
        super().__init__(package.manifest.answer, self._prepare.background, topk=topk, batch_size=batch_size)

    @classmethod
    def open(cls, path: Path, *, provider: str = "cpu", topk: int | None = None, batch_size: int = 32) -> BundlePredictor:
        """Open the package at ``path``. Raises ``PackageError`` if it is damaged, ``UserError`` for an unknown provider."""
        package = open_package(path)
        return cls(package, Session(package.model, package.label, provider=provider), topk=topk, batch_size=batch_size)

    def load(self, source: ImageSource) -> tuple[Floats, Placement]:
        return self._prepare.placed(source)

    def run(self, images: Sequence[Floats]) -> Outputs:
        return self.session(np.stack(images))


class Model:
    """A package, ready to predict: ``up.deploy.load(path).predict(images)``."""

    def __init__(self, predictor: BundlePredictor, threads: int) -> None:
        self._predictor = predictor
        self._threads = threads

    @property
    def manifest(self) -> dict[str, Json]:
        """Everything in ``up_bundle.json``."""
        found: dict[str, Json] = self._predictor.package.manifest.plain()
        return found

    @property
    def labels(self) -> list[list[str]]:
        """The names of the classes, a list for each head."""
        return self._predictor.answer.label_lists()

    def predict(self, images: ImageSource | Iterable[ImageSource]) -> list[Prediction]:
        """Predict for one or several images: paths, encoded bytes, Pillow images, levels (H, W, 3) in RGB.

        ``prediction.heads[0]`` lists the best classes of the (first) head, ``prediction.result`` what other answers found, a
        mask or boxes, and ``prediction.error`` why there is nothing.
        """
        return list(self._predictor.predict(_several(images), threads=self._threads))

    def scores(self, images: ImageSource | Iterable[ImageSource]) -> list[list[Floats]]:
        """For each image the probabilities (C,) of each head, or of each pixel or box. Raises ``BadImage``."""
        found: list[list[Floats]] = []
        for group, outputs in self._predictor.batches(_several(images), threads=self._threads):
            for number, (source, read) in enumerate(group, len(found)):
                if isinstance(read, str):
                    raise BadImage(name_of(source, number), read)
            scores = self._predictor.answer.probabilities(outputs)
            found += [[each[row] for each in scores] for row in range(len(group))]
        return found


def name_of(source: ImageSource, number: int) -> str:
    """The path of an image, or a number for one without a path."""
    return str(source) if isinstance(source, (str, Path)) else f"image {number}"


def _several(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """One image as a list of one; an array (N, H, W, 3) is N of them."""
    if isinstance(images, (str, Path, bytes, Image.Image)):
        return [images]
    return [images] if isinstance(images, np.ndarray) and images.ndim < 4 else images
