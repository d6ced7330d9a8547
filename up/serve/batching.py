"""Images of concurrent requests in common batches: threads that decode, a bounded queue, threads that run the graph."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from up.bundle.answers import Floats, Result
from up.bundle.operations import Placement
from up.bundle.predictor import Predictor
from up.data.bad_images import BadImage

_SCANS = 200  # of a JPEG; a progressive one has about ten, and each may cost a pass over all pixels
_START_OF_SCAN = b"\xff\xda"
_NEWEST = 0.2  # weight of the newest batch in the mean time of an image


class QueueFull(Exception):
    """The images do not fit into the queue; ``seconds`` from now they probably do."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(frozen=True)
class BatchSettings:
    """Size of the batches and of the queue.

    ``threads`` decode images. ``workers`` batches run at a time. A batch of fewer than ``max_batch`` images waits at most
    ``max_wait`` seconds, and only while further images are being decoded. ``queue`` images are held at a time: being decoded,
    waiting or being predicted.
    """

    threads: int
    workers: int
    max_batch: int
    max_wait: float
    queue: int


@dataclass(frozen=True)
class _Ready:
    """An image, decoded."""

    values: Floats
    placement: Placement | None
    topk: int | None
    result: Future[Result]


class Batcher:
    """Prediction of images in batches of whatever arrives at the same time. Methods may be called from any thread.

    ``on_batch`` gets the number of images of each batch.
    """

    def __init__(self, predictor: Predictor[Floats], settings: BatchSettings, on_batch: Callable[[int], object]) -> None:
        self._predictor, self._settings, self._on_batch = predictor, settings, on_batch
        self._changed = threading.Condition()
        self._ready: deque[_Ready] = deque()
        self._encoded: dict[Future[Result], bytes] = {}  # images that no thread decodes yet
        self._held = self._decoding = 0
        self._seconds_an_image = 0.0
        self._is_closed = False
        self._decoders = ThreadPoolExecutor(settings.threads, "up-decode")
        self._runners = [threading.Thread(target=self._run, name=f"up-run-{n}", daemon=True) for n in range(settings.workers)]
        for runner in self._runners:
            runner.start()

    @property
    def held(self) -> int:
        """Number of images in the queue."""
        return self._held

    def submit(self, images: Sequence[bytes], topk: int | None = None) -> list[Future[Result]]:
        """Accept encoded images; their futures raise ``BadImage``. Raises ``QueueFull`` unless all of them fit into the queue."""
        with self._changed:
            self.expect_room(len(images))
            self._held += len(images)
            self._decoding += len(images)
        results: list[Future[Result]] = [Future() for _ in images]
        for image, result in zip(images, results, strict=True):
            self._encoded[result] = image  # the pool would keep it until its turn, also when nobody waits for it any more
            result.add_done_callback(self._release)
            self._decoders.submit(self._decode, topk, result)
        return results

    def expect_room(self, images: int) -> None:
        """Raise ``QueueFull`` if so many images do not fit into the queue."""
        if self._held + images > self._settings.queue:
            raise QueueFull(max(1, math.ceil(self._held * self._seconds_an_image)))

    def close(self) -> None:
        """End the threads once the images in the queue are predicted."""
        self._decoders.shutdown()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for runner in self._runners:
            runner.join()

    def _release(self, result: Future[Result]) -> None:
        self._encoded.pop(result, None)
        with self._changed:
            self._held -= 1

    def _decode(self, topk: int | None, result: Future[Result]) -> None:
        ready = None
        if result.set_running_or_notify_cancel():
            image = self._encoded.pop(result)
            try:
                if image.startswith(b"\xff\xd8") and image.count(_START_OF_SCAN) > _SCANS:
                    raise BadImage("image", f"a JPEG of more than {_SCANS} scans")
                ready = _Ready(*self._predictor.load(image), topk, result)
            except MemoryError:
                result.set_exception(BadImage("image", "needs more memory than there is"))
            except Exception as error:  # a bug is reported by the request
                result.set_exception(error)
        with self._changed:
            self._decoding -= 1
            if ready is not None:
                self._ready.append(ready)
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next():
            self._on_batch(len(batch))
            begun = time.monotonic()
            try:
                outputs = self._predictor.run([each.values for each in batch])
                for row, each in enumerate(batch):
                    own = {name: values[row : row + 1] for name, values in outputs.items()}
                    (result,) = self._predictor.results(own, each.topk or self._predictor.topk)
                    if isinstance(result, str):
                        each.result.set_exception(BadImage("image", result, "Send an image without extreme values."))
                    else:
                        each.result.set_result(result if each.placement is None else result.on_image(each.placement))
            except Exception as error:  # of the runtime: out of memory, a device that is lost
                for each in batch:
                    if not each.result.done():
                        each.result.set_exception(error)
            of_image = (time.monotonic() - begun) / len(batch) / self._settings.workers
            self._seconds_an_image += _NEWEST * (of_image - self._seconds_an_image)

    def _next(self) -> list[_Ready]:
        """Wait for images and return a batch of them; empty once the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._ready or self._is_closed)
                self._changed.wait_for(self._is_full, self._settings.max_wait)
                batch = [self._ready.popleft() for _ in range(min(len(self._ready), self._settings.max_batch))]
                if batch or self._is_closed:  # otherwise another runner took them
                    return batch

    def _is_full(self) -> bool:
        """Whether waiting would not make a larger batch."""
        return len(self._ready) >= self._settings.max_batch or not self._decoding
