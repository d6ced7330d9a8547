"""Results as they come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.harness.facts import facts
from up.errors import StorageError
from up.tasks.cls.data.inference import already_done
from up.tasks.cls.evaluate.results import ResultStream

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])


def test_appends_a_line_an_image_that_a_later_inference_understands(tmp_path: Path) -> None:
    stream = ResultStream(tmp_path, depth=2)
    stream({"scores": SCORES}, {"filename": ["a.png", "b.png"], "index": torch.tensor([4, 7])})
    stream({"scores": SCORES[:1]}, {"filename": ["c.png"], "index": torch.tensor([9]), "gt": torch.tensor([2])})
    lines = [json.loads(line) for line in (tmp_path / "results.txt.rank0").read_text().splitlines()]
    assert lines[0] == {"prediction": 1, "label": None, "topk_idx": [1, 2], "topk_score": [0.7, 0.2], "filename": "a.png"}
    assert [(line["filename"], line["label"]) for line in lines] == [("a.png", None), ("b.png", None), ("c.png", 2)]
    assert already_done({"resume_dir": str(tmp_path)}) == {"a.png", "b.png", "c.png"}


def test_all_scores_on_demand(tmp_path: Path) -> None:
    ResultStream(tmp_path, depth=1, keep_scores=True)({"scores": SCORES}, {"filename": ["a", "b"], "index": torch.arange(2)})
    assert json.loads((tmp_path / "results.txt.rank0").read_text().splitlines()[1])["score"] == [0.5, 0.2, 0.3]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    stream = ResultStream(tmp_path / "gone", depth=1)
    with pytest.raises(StorageError, match=facts("results.txt.rank0", "written", "directory")):
        stream({"scores": SCORES}, {"filename": ["a", "b"], "index": torch.arange(2)})
