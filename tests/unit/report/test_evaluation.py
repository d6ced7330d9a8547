"""The evaluation kept beside a report, which is made anew where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from up.report.evaluation import restored, save_state
from up.tasks.cls.evaluate.metrics import ImageNetEvaluator

KEY = {"checkpoint_sha256": "a"}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    evaluator = ImageNetEvaluator(keep_scores=True)
    scores, gt = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]), torch.tensor([1, 1, 1])
    evaluator.update({"scores": scores}, {"filename": ["a", "b", "c"], "index": torch.arange(3), "gt": gt})
    save_state(tmp_path / "report.npz", KEY, evaluator.state())
    return tmp_path / "report.npz"


def test_is_the_same_as_before(kept: Path) -> None:
    found = restored(ImageNetEvaluator(), kept, KEY)
    assert found is not None
    assert found.compute()["top1"] == pytest.approx(200 / 3)
    assert restored(ImageNetEvaluator(), kept, {"checkpoint_sha256": "b"}) is None
    assert restored(ImageNetEvaluator(), kept.with_name("none.npz"), KEY) is None


def test_a_damaged_file_is_none(kept: Path) -> None:
    whole = kept.read_bytes()
    for length in (0, 1, 4, len(whole) // 2, len(whole) - 1):
        kept.write_bytes(whole[:length])
        assert restored(ImageNetEvaluator(), kept, KEY) is None
    for at in range(0, len(whole), 7):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        found = restored(ImageNetEvaluator(), kept, KEY)
        assert found is None or found.compute()["top1"] == pytest.approx(200 / 3)
