"""An evaluation keeps a few numbers an image: no name that the data set has, no text of a file."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest
import torch

from up.data.packed import PackedStrings
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.predictions import Recorder, combine
from up.tasks.cls.evaluate.reports import write_reports

N, BATCH, CLASSES = 16_384, 128, 8
PACKED = 8 + 2 * 5 * 4 + 2 * 4  # bytes an image: index, five classes with scores, label and rank


def name(index: int) -> str:
    return f"validation/n{index % CLASSES:08d}/a_rather_long_name_of_a_photograph_{index:012d}.jpeg"


def feed(evaluator: ImageNetEvaluator, *, shift: int = 0) -> None:
    """Evaluate ``N`` images; every label is right, so that few rows are in the list of wrong ones."""
    for start in range(0, N, BATCH):
        index = torch.arange(start, start + BATCH)
        scores = torch.nn.functional.one_hot(index % CLASSES, CLASSES).float()
        batch = {"filename": [name(i + shift) for i in index.tolist()], "index": index, "gt": index % CLASSES}
        evaluator.update({"scores": scores}, batch)


@pytest.fixture(autouse=True)
def _without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.tasks.cls.evaluate.reports.confusion_figure", lambda *_: b"PNG")


def test_memory_of_an_evaluation_is_that_of_its_arrays(tmp_path: Path) -> None:
    evaluator = ImageNetEvaluator()
    evaluator.listed = PackedStrings(map(name, range(N)))
    evaluator.reset()
    gc.collect()
    tracemalloc.start()
    try:
        feed(evaluator)
        collected = tracemalloc.get_traced_memory()[0]
        evaluator.merge([evaluator.state()])
        assert evaluator.compute()["top1"] == 100
        write_reports(evaluator, tmp_path, save_result=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert collected < 0.25 * PACKED * N  # a name alone takes 130 bytes; the tensors of torch are not counted
    assert peak < 2 * PACKED * N
    assert len((tmp_path / "predictions.csv").read_bytes()) > 2 * PACKED * N  # so that its text would not fit
    assert (tmp_path / "predictions.csv").read_text().splitlines()[N].startswith(name(N - 1))


def test_names_that_differ_from_the_list_are_kept() -> None:
    """A data set may name an image in its own way, from some batch on."""
    listed = PackedStrings(["a", "b", "c"])
    recorder = Recorder(depth=1, keep_scores=False, multilabel=False, listed=listed)
    scores = torch.rand(1, 2)
    recorder.add(scores, {"filename": ["a"], "index": [0]})
    assert "names" not in recorder.state()
    recorder.add(scores, {"filename": ["b'"], "index": [1]})
    other = Recorder(depth=1, keep_scores=False, multilabel=False, listed=listed)
    other.add(scores, {"filename": ["c"], "index": [2]})
    other.add(scores, {"filename": ["d"], "index": [3]})
    alone = Recorder(depth=1, keep_scores=False, multilabel=False, listed=listed)
    alone.add(scores, {"filename": ["c"], "index": [2]})
    for states in ([recorder.state(), alone.state()], [alone.state(), recorder.state()]):
        assert [*combine(states, listed).filename] == ["a", "b'", "c"]
    assert [*combine([recorder.state(), other.state()], listed).filename] == ["a", "b'", "c", "d"]
