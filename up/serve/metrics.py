"""Metrics of a server for Prometheus.

The library prometheus_client writes the format: it has no dependencies, and brings memory, CPU time and open files of the process.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from up.bundle.manifest import Manifest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server."""

    def __init__(self, manifest: Manifest) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, with the time of its first increment
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        model = Gauge("up_model_info", "The model that is served.", ["model", "version"], registry=registry)
        model.labels(manifest.name, manifest.version).set(1)
        self.requests = Counter("up_requests", "Requests by path and status code.", ["path", "code"], registry=registry)
        self.images = Counter("up_images", "Images by result: ok or error.", ["result"], registry=registry)
        self.seconds = Histogram(
            "up_predict_seconds", "Seconds from the head of a request to its answer.", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram("up_batch_images", "Images in a batch.", buckets=_IMAGES, registry=registry)
        self.queue = Gauge("up_queue_images", "Images being decoded, waiting or predicted.", registry=registry)

    def text(self) -> bytes:
        """Return the metrics in the text format."""
        return generate_latest(self._registry)
