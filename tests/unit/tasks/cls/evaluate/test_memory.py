"""An evaluation keeps a few numbers an image: no name that the data set has, no text of a file."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from up.data.packed import PackedStrings
from up.data_report.confident import label_issues
from up.data_report.out_of_sample import probabilities_of
from up.errors import StorageError
from up.tasks.cls.evaluate import row_file
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator
from up.tasks.cls.evaluate.mistakes import mistakes_of_sets
from up.tasks.cls.evaluate.predictions import HeadPredictions, Recorder, combine
from up.tasks.cls.evaluate.reports import write_reports
from up.tasks.cls.evaluate.sections import calibration_section

N, BATCH, CLASSES = 4096, 128, 8
PACKED = 8 + 2 * 5 * 4 + 2 * 4  # bytes an image: index, five classes with scores, label and rank


def name(index: int) -> str:
    return f"validation/n{index % CLASSES:08d}/a_rather_long_name_of_a_photograph_{index:012d}.jpeg"


def feed(evaluator: ImageNetEvaluator, *, classes: int = CLASSES) -> None:
    """Evaluate ``N`` images; every label is right, so that few rows are in the list of wrong ones."""
    for start in range(0, N, BATCH):
        index = torch.arange(start, start + BATCH)
        scores = torch.nn.functional.one_hot(index % CLASSES, classes).float()
        batch = {"filename": [name(i) for i in index.tolist()], "index": index, "gt": index % CLASSES}
        evaluator.update({"scores": scores}, batch)


@pytest.fixture(autouse=True)
def _small_blocks_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("up.tasks.cls.evaluate.predictions._BLOCK", N // 8)
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


WIDE = 64  # classes whose scores are all kept


def kept_by_torch() -> int:
    """Bytes of all tensors, which tracemalloc does not count."""
    alive = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive}.values())


def test_scores_of_all_classes_are_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "LIMIT", 1 << 16)
    evaluator = ImageNetEvaluator(keep_scores=True)
    evaluator.listed = PackedStrings(map(name, range(N)))
    evaluator.reset()
    gc.collect()
    before = kept_by_torch()
    tracemalloc.start()
    try:
        feed(evaluator, classes=WIDE)
        collected, peak_of_batches = tracemalloc.get_traced_memory()
        collected += kept_by_torch() - before
        tracemalloc.reset_peak()  # the list of all objects takes megabytes in a large process
        evaluator.merge([evaluator.state()])
        assert evaluator.compute()["top1"] == 100
        assert evaluator.predictions.heads[0].scores is not None
        write_reports(evaluator, tmp_path)
        peak = max(peak_of_batches, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    scores = 4 * WIDE * N
    assert collected < PACKED * N + scores / 8
    assert peak < 2 * PACKED * N + scores / 8


def small_head(*, are_sets: bool) -> HeadPredictions:
    """A head with all scores (N, WIDE): probabilities of which a third predict another class, or sets of labels."""
    draw = np.random.default_rng(0)
    scores = draw.random((N, WIDE), dtype=np.float32)
    gt = scores > 0.4 if are_sets else (scores.argmax(axis=1) + (draw.random(N) < 0.3)) % WIDE
    probabilities = scores if are_sets else scores / scores.sum(axis=1, keepdims=True)
    best = probabilities.argmax(axis=1)[:, None]
    return HeadPredictions(WIDE, best, np.take_along_axis(probabilities, best, axis=1), gt, scores=probabilities)


class NoImages:
    """Originals and explanations of a gallery that has none."""

    reason = ""

    def original(self, row: int) -> None:
        return None

    def explained(self, rows: Sequence[int]) -> list[None]:
        return [None] * len(rows)


def of_sets(head: HeadPredictions) -> object:
    return mistakes_of_sets(head, [str(label) for label in range(WIDE)], [""] * N, NoImages())


USES: dict[str, tuple[bool, Callable[[HeadPredictions], object]]] = {
    "calibration": (False, lambda head: calibration_section(head, "", "")),
    "mistakes of sets of labels": (True, of_sets),
    "label errors": (False, lambda head: label_issues(head.labels, probabilities_of(head.scores))),
}


@pytest.mark.parametrize("use", USES)
def test_reports_copy_blocks_of_scores(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "LIMIT", 1 << 16)
    monkeypatch.setattr(row_file, "_BLOCK_BYTES", 1 << 16)
    are_sets, run = USES[use]
    head = small_head(are_sets=are_sets)
    gc.collect()
    tracemalloc.start()
    try:
        run(head)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert head.scores is not None
    assert peak < head.scores.nbytes  # of one copy as float32; as float64 it takes twice as much


@pytest.mark.parametrize("limit", [0, 3000, 1 << 24])
def test_scores_come_by_rising_index_and_once(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From several ranks, of which two have the same image; and more images after the first state."""
    monkeypatch.setattr(row_file, "LIMIT", limit)
    monkeypatch.setattr(row_file, "_BLOCK", 7)
    scores, draw = torch.rand(60, 5), torch.Generator().manual_seed(0)
    recorders = [Recorder(depth=2, keep_scores=True, multilabel=False) for _ in range(3)]
    order = torch.cat([torch.randperm(60, generator=draw), torch.tensor([3, 50])])
    for number, index in enumerate(order.split(9)):
        recorder = recorders[number % 3]
        recorder.add(scores[index], {"filename": [str(each) for each in index.tolist()], "index": index})
        assert len(recorder.state()["scores0"]) == len(recorder.state()["index"])
    found = combine([pickle.loads(pickle.dumps(recorder.state())) for recorder in recorders])
    assert found.index.tolist() == list(range(60))
    assert np.array_equal(found.heads[0].scores, scores.numpy())  # type: ignore[arg-type]


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(row_file, "LIMIT", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    recorder = Recorder(depth=1, keep_scores=True, multilabel=False)
    with pytest.raises(StorageError, match="TMPDIR"):
        recorder.add(torch.rand(2, 3), {"filename": ["a", "b"], "index": [0, 1]})


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a device of Linux")
def test_a_disk_that_fills_up_is_named_at_the_last_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_file, "LIMIT", 0)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    recorder = Recorder(depth=1, keep_scores=True, multilabel=False)
    with pytest.raises(StorageError, match="TMPDIR"):
        recorder.add(torch.rand(2, 3), {"filename": ["a", "b"], "index": [0, 1]})
