"""Prediction with a package: onnxruntime, numpy and Pillow. Nothing here may import torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from up.bundle.answers import Answer, Floats, Outputs, Result
from up.bundle.operations import Placement
from up.bundle.package import Package
from up.bundle.predictions import Prediction
from up.bundle.preprocess import ImageSource, Preprocessing
from up.bundle.session import Session
from up.data.bad_images import BadImage
from up.data.decoding import SUFFIXES, WITH_ARRAYS
from up.types import Json

_NOT_FINITE = "the outputs of the model for it are not finite numbers"
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Predictor(Generic[Loaded]):
    """Prediction for images.

    ``load`` reads and prepares one image, in any thread, with its placement if results are spatial; it raises ``BadImage``.
    ``run`` computes the outputs for prepared images, ``answer`` makes predictions of them. ``topk`` limits how many an image
    gets (None: the number of the answer). ``image`` opens an image to draw predictions on. ``suffixes`` are those of the images
    in a folder.
    """

    answer: Answer
    load: Callable[[ImageSource], tuple[Loaded, Placement | None]]
    run: Callable[[Sequence[Loaded]], Outputs]
    image: Callable[[str], Image.Image]
    topk: int | None = None
    batch_size: int = 32
    suffixes: Collection[str] = SUFFIXES

    def predict(self, images: Iterable[ImageSource], *, threads: int = 2) -> Iterator[Prediction]:
        """Yield a prediction per image, in order; one that cannot be read has its ``error``. Threads decode further images."""
        number = 0
        for group, outputs in self.batches(images, threads=threads):
            results = iter(self.results(outputs, self.topk) if outputs else ())
            for source, read in group:
                name = name_of(source, number)
                result = read if isinstance(read, str) else next(results)
                if isinstance(result, str):
                    yield Prediction(name, error=result)
                else:
                    yield Prediction(name, result.on_image(read) if isinstance(read, Placement) else result)
                number += 1

    def results(self, outputs: Outputs, topk: int | None) -> list[Result | str]:
        """Return the result of each image of a batch, or the reason why its outputs have none: they are not finite."""
        usable = _usable(outputs)
        found = iter(self.answer.decode({name: values[usable] for name, values in outputs.items()}, topk))
        return [next(found) if each else _NOT_FINITE for each in usable]

    def batches(
        self, images: Iterable[ImageSource], *, threads: int
    ) -> Iterator[tuple[list[tuple[ImageSource, Placement | str | None]], Outputs]]:
        """Yield groups of images, each with its placement or the reason why it cannot be read, and the outputs for the others."""
        loaded = prefetched(self._load, images, threads=threads, limit=2 * self.batch_size + threads)
        while group := list(islice(loaded, self.batch_size)):
            good = [read[0] for _, read in group if not isinstance(read, str)]
            outputs = self.run(good) if good else {}
            yield [(source, read if isinstance(read, str) else read[1]) for source, read in group], outputs

    def _load(self, source: ImageSource) -> tuple[Loaded, Placement | None] | str:
        try:
            return self.load(source)
        except BadImage as bad:
            return bad.reason


def _usable(outputs: Outputs) -> NDArray[np.bool_]:
    """Find the images (N,) whose outputs are numbers below infinity; minus infinity is the score of what is ruled out."""
    usable = np.ones(len(next(iter(outputs.values()))), dtype=np.bool_)
    for values in outputs.values():
        if values.size:
            usable &= values.reshape(len(values), -1).max(axis=1) < np.inf
    return usable


def package_predictor(
    package: Package, *, provider: str = "cpu", topk: int | None = None, batch_size: int = 32
) -> Predictor[Floats]:
    """Start the graph of a package. Raises ``UserError`` for a provider that this onnxruntime does not have."""
    session = Session(package.model, package.label, provider=provider)
    prepare = Preprocessing(package.manifest.preprocess, package.manifest.input_size)
    answer = package.manifest.answer
    suffixes = WITH_ARRAYS if package.manifest.inputs[0].channel_order == "stored" else SUFFIXES
    return Predictor(answer, prepare.placed, lambda images: session(np.stack(images)), prepare.image, topk, batch_size, suffixes)


class Model:
    """A package, ready to predict: ``up.deploy.load(path).predict(images)``."""

    def __init__(self, package: Package, predictor: Predictor[Floats], threads: int) -> None:
        self._package, self._predictor, self._threads = package, predictor, threads

    @property
    def manifest(self) -> dict[str, Json]:
        """Content of ``up_bundle.json``."""
        return self._package.manifest.plain()

    @property
    def labels(self) -> list[list[str]]:
        """Names of the classes, a list for each head."""
        return self._predictor.answer.label_lists()

    def predict(self, images: ImageSource | Iterable[ImageSource]) -> list[Prediction]:
        """Predict for one or several images: paths, encoded bytes, Pillow images, levels (H, W, 3) in RGB, or
        (C, H, W) for channels as stored.

        ``prediction.heads[0]`` lists the best classes of the (first) head, ``prediction.result`` holds the mask or the boxes of
        other answers, and ``prediction.error`` says why an image has no result.
        """
        return list(self._predictor.predict(_several(images), threads=self._threads))

    def scores(self, images: ImageSource | Iterable[ImageSource]) -> list[list[Floats]]:
        """Return for each image the probabilities (C,) of each head, or of each pixel or box. Raises ``BadImage``."""
        found: list[list[Floats]] = []
        for group, outputs in self._predictor.batches(_several(images), threads=self._threads):
            for number, (source, read) in enumerate(group, len(found)):
                if isinstance(read, str):
                    raise BadImage(name_of(source, number), read)
            scores = self._predictor.answer.probabilities(outputs)
            found += [[each[row] for each in scores] for row in range(len(group))]
        return found


def name_of(source: ImageSource, number: int) -> str:
    """Return the path of an image, or a number if it has none."""
    return str(source) if isinstance(source, (str, Path)) else f"image {number}"


def _several(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Wrap a single image in a list; an array (N, H, W, 3) is N images."""
    if isinstance(images, (str, Path, bytes, Image.Image)):
        return [images]
    return [images] if isinstance(images, np.ndarray) and images.ndim < 4 else images


def prefetched(load: Callable[[Item], Loaded], items: Iterable[Item], *, threads: int, limit: int) -> Iterator[tuple[Item, Loaded]]:
    """Load items in threads and yield each with its result, in order; at most ``limit`` results wait in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        todo = iter(items)
        try:
            for item in islice(todo, limit):
                waiting.append((item, pool.submit(load, item)))
            while waiting:
                item, future = waiting.popleft()
                waiting.extend((another, pool.submit(load, another)) for another in islice(todo, 1))
                yield item, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
