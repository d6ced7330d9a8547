"""Workers that are spawned map the arrays of a data set instead of receiving them."""

from __future__ import annotations

import os
import pickle
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from up.data.packed import PackedStrings
from up.data.records import SampleKey
from up.data.shared import Shared

NUMBER = 50_000


class Names:
    """Names by index, with labels and something small."""

    def __init__(self) -> None:
        self.names = PackedStrings(f"folder/image {index}.jpg" for index in range(NUMBER))
        self.labels = np.arange(NUMBER)
        self.small = np.arange(3)

    def __getitem__(self, keys: list[SampleKey]) -> list[Any]:
        return [(self.names[key.index], int(self.labels[key.index]), self.small.tolist()) for key in keys]


def test_arrays_are_not_in_the_pickle() -> None:
    shared = Shared(Names())
    pickled = pickle.dumps(shared)
    assert len(pickled) < 4000
    again = pickle.loads(pickled)
    keys = [SampleKey(0, 0), SampleKey(0, NUMBER - 1)]
    assert again[keys] == shared[keys] == Names()[keys]
    assert pickle.loads(pickle.dumps(again))[keys] == shared[keys]


def test_arrays_are_whole_though_the_kernel_writes_no_more_than_2_gib_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, memoryview(data)[:1000], offset))
    shared, keys = Shared(Names()), [SampleKey(0, NUMBER - 1)]
    assert pickle.loads(pickle.dumps(shared))[keys] == Names()[keys]


def test_the_memory_ends_with_the_object() -> None:
    shared = Shared(Names())
    again = pickle.loads(pickle.dumps(shared))
    path = shared._packed[2].path
    assert os.path.exists(path)
    del shared
    assert not os.path.exists(path)
    assert again[[SampleKey(0, 7)]][0][1] == 7


def test_a_process_that_is_spawned_reads_them() -> None:
    shared = Shared(Names())
    context = get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_answer, args=(shared, answers))
    process.start()
    label, private = answers.get()
    process.join()
    assert label == NUMBER - 1
    assert private < 400_000  # bytes; the arrays have 1.6 million


def _answer(shared: Shared[Any], answers: Any) -> None:
    before = _private()
    label = shared[[SampleKey(0, NUMBER - 1)]][0][1]
    answers.put((label, _private() - before))


def _private() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private"))
