"""Speed and memory of a run: images per second, share of the time spent waiting for data, peak memory."""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import nn

from up.engine.hooks import StepReport


class SpeedMeter:
    """Speed over the steps since the last reading, without the time of evaluations and checkpoints."""

    def __init__(self) -> None:
        self._images, self._wait_s = 0, 0.0
        self._since = self._seen = time.perf_counter()

    def add(self, report: StepReport) -> None:
        """Add a step that has just finished."""
        self._images += report.images
        self._wait_s += report.wait_s
        self._seen = time.perf_counter()

    def leave_out(self) -> None:
        """Leave out the time since the last step, such as that of an evaluation."""
        now = time.perf_counter()
        self._since += now - self._seen
        self._seen = now

    def read(self) -> tuple[float, float]:
        """Return images per second and the share of the time spent waiting for data (0 to 1), and reset."""
        now = time.perf_counter()
        spent = max(now - self._since, 1e-9)
        speed = self._images / spent, min(1.0, self._wait_s / spent)
        self._images, self._wait_s, self._since, self._seen = 0, 0.0, now, now
        return speed


def peak_memory(model: nn.Module) -> int:
    """Return the most bytes in use so far: in tensors on the GPU of ``model``, otherwise of this process."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()


def process_peak() -> int:
    """Return the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB elsewhere
