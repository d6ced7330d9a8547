"""A batch function that writes down which images it was given: what ``runtime.plugins`` may bring."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import torch

from up.data.records import Batch

TABLES = {"batch_fn": {"record": "tests.harness.recording:Record"}}


class Record:
    """Appends the indices, with the seeds of their augmentation, of every micro-batch to ``folder/{rank}.jsonl``."""

    def __init__(self, *, folder: str) -> None:
        self.path = Path(folder) / f"{os.environ.get('RANK', '0')}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        if torch.is_grad_enabled():  # the trial before a run trains nothing
            with self.path.open("a") as file:
                file.write(json.dumps(list(zip(batch.index.tolist(), batch.seed.tolist(), strict=True))) + "\n")
        return batch


def steps_of(folder: Path, micro_batches: int = 1) -> list[set[tuple[int, int]]]:
    """The (index, seed) pairs of each update over all ranks, from what ``Record`` wrote."""
    steps: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for path in folder.glob("*.jsonl"):
        for line, text in enumerate(path.read_text().splitlines()):
            steps[line // micro_batches] |= {(index, seed) for index, seed in json.loads(text)}
    return [steps[step] for step in sorted(steps)]
