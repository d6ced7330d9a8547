"""A file of events for TensorBoard. Imported with the first of them: the library takes a tenth of a second."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, pr_curve_raw, scalar, text

from up.figures import Pixels

_FLUSH_S = 30.0
_THRESHOLDS = 101  # of a precision-recall curve


class EventFile:
    """A file of events for TensorBoard, which hides the points of earlier files from ``first_step`` on.

    The caller's thread writes: the thread of tensorboardX's own writer ends silently on a full disk, and then the run waits for
    it forever. All methods raise ``OSError``.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{first_step}")
        self._flushed = 0.0
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point for each name."""
        self._write(step=step, summary=Summary(value=[point for item in values.items() for point in scalar(*item).value]))
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def add_image(self, step: int, tag: str, image: Pixels | bytes) -> None:
        """Add an image: pixels (H, W, 3), or a PNG."""
        png = image if isinstance(image, bytes) else _png(image)
        width, height = Image.open(io.BytesIO(png)).size
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=shown)]))

    def add_text(self, step: int, tag: str, lines: Sequence[str]) -> None:
        """Add lines of text, as a list in Markdown."""
        self._write(step=step, summary=text(tag, "\n".join(f"- {line}" for line in lines)))

    def add_curve(self, step: int, tag: str, is_of_class: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        """Add the precision-recall curve of a class, from each image (n,): whether it is of the class, and its score, 0 to 1."""
        curve = precision_recall(is_of_class, scores)
        self._write(step=step, summary=pr_curve_raw(tag, *curve, num_thresholds=_THRESHOLDS))

    def add_settings(self, step: int, settings: Mapping[str, bool | float | str], metrics: Sequence[str]) -> None:
        """Add the settings of the run and the tags of its metrics, by which the HPARAMS page compares runs."""
        for summary in hparams(dict(settings), dict.fromkeys(metrics, 0.0))[:2]:
            self._write(step=step, summary=summary)

    def add_graph(self, step: int, graph: bytes) -> None:
        """Add the graph of a net, a serialized GraphDef."""
        self._write(step=step, graph_def=graph)

    def close(self) -> None:
        """Write the rest and close the file."""
        self._writer.close()

    def _write(self, **fields: object) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **fields))


def precision_recall(is_of_class: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return true and false positives, true and false negatives, precision and recall (6, T) at thresholds from 0 to 1.

    An image is predicted as of the class if its score is at least the threshold; where none is, the precision is 1.
    """
    thresholds = np.linspace(0, 1, _THRESHOLDS)
    order = np.argsort(scores)
    first = np.searchsorted(scores[order], thresholds)  # of those predicted
    below = np.concatenate([[0], np.cumsum(is_of_class[order])])
    positives = below[-1] - below[first]
    predicted = len(scores) - first
    negatives = below[first]
    precision = np.where(predicted > 0, positives / np.maximum(predicted, 1), 1.0)
    recall = positives / max(1, below[-1])
    return np.stack([positives, predicted - positives, first - negatives, negatives, precision, recall]).astype(np.float64)


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
