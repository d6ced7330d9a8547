"""Prediction with a checkpoint: the net of the configuration, its reader and its test transforms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from up.build.data import build_reader, build_transforms
from up.build.trained import load_trained
from up.bundle.predictions import Answer, Guess, best_guesses
from up.bundle.prefetch import grouped, loaded_ahead
from up.data.bad_images import BadImage
from up.data.decoding import Color
from up.data.records import Batch, Sample
from up.tasks.experiment import Experiment

TOPK = 5


class CheckpointPredictor:
    """``predict(paths)`` gives an ``Answer`` an image, in order; one that cannot be read is answered with its error."""

    def __init__(self, experiment: Experiment, checkpoint: Path | None, *, topk: int | None = None, batch_size: int = 32) -> None:
        self.topk = topk
        self.batch_size = batch_size
        self.trained = load_trained(experiment, checkpoint)
        self._collate = experiment.task.collate
        reader = build_reader(experiment, "test")
        self.background: Color | None = getattr(reader, "background", None)
        self._pipeline = experiment.task.pipeline(reader, build_transforms(experiment, "test"))

    def predict(self, paths: Sequence[Path], *, threads: int = 2) -> Iterator[Answer]:
        """Images are decoded in threads while the net works."""
        loaded = loaded_ahead(self._load, paths, threads=threads, ahead=2 * self.batch_size + threads)
        for group in grouped(loaded, self.batch_size):
            yield from self._answers(group)

    def _load(self, path: Path) -> Sample | str:
        try:
            return self._pipeline.load(path)
        except BadImage as bad:
            return bad.reason

    def _answers(self, group: Iterable[tuple[Path, Sample | str]]) -> list[Answer]:
        answers = {path: Answer(str(path), error=loaded) for path, loaded in group if isinstance(loaded, str)}
        good = [(path, loaded) for path, loaded in group if not isinstance(loaded, str)]
        for path, heads in zip([path for path, _ in good], self._heads([sample for _, sample in good]), strict=True):
            answers[path] = Answer(str(path), heads)
        return [answers[path] for path, _ in group]

    def _heads(self, samples: list[Sample]) -> Iterator[list[list[Guess]]]:
        """For each image the best classes of each head."""
        if not samples:
            return
        batch: Batch = self._pipeline.finish(self._collate(samples), self.trained.device)
        with torch.inference_mode():  # in float32 however the net was trained, as a package computes it
            found = self.trained.net(batch)
        scores, preds = (_arrays(found[name]) for name in ("scores", "preds"))
        names = self._names(len(scores))
        for row in range(len(samples)):
            yield [
                best_guesses(own[row], of_head, topk=self.topk, default=TOPK, present=told[row] if told.dtype == np.bool_ else None)
                for own, told, of_head in zip(scores, preds, names, strict=True)
            ]

    def _names(self, heads: int) -> Sequence[Sequence[str] | None]:
        names: Any = self.trained.class_names
        if names and isinstance(names[0], list):
            return list(names)
        return [names] * heads


def _arrays(of_heads: Tensor | Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """One array a head; bool (N, C) for ``preds`` that are sets of labels."""
    heads = [of_heads] if isinstance(of_heads, Tensor) else of_heads
    return [(head.float() if head.is_floating_point() else head).cpu().numpy() for head in heads]
