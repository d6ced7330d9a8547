"""What travels from the data set to the loss: samples, batches, and the keys that randomness hangs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from easydict import EasyDict

from up.seed import key

Sample = EasyDict  # image (C, H, W) uint8 or float, gt, filename, index, seed, bad; a task may add fields
Batch = EasyDict  # the same, stacked: image (B, C, H, W), gt (B,) | (B, heads) | (B, classes), filename list,
# index (B,), seed (B,), bad list


@dataclass(frozen=True, slots=True)
class SampleKey:
    """One visit of a sample: all of its randomness hangs on (run seed, epoch, index, repeat)."""

    epoch: int
    index: int
    repeat: int = 0

    def seed(self, run_seed: int) -> int:
        """63 bits, so that a batch can carry it as int64."""
        return key(run_seed, self.epoch, self.index, self.repeat) >> 1


def image_count(batch: dict[str, Any]) -> int:
    """How many samples a batch holds."""
    return len(batch["filename"])
