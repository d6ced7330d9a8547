"""JSON without NaN: what is written, and what is read back, of this version and of those that wrote NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from up.build.best_metrics import metrics_of_best
from up.bundle.answers.classes import Classes, ClassPrediction
from up.bundle.predictions import Prediction, rendered
from up.engine.child import evaluations_in
from up.engine.hooks import Outline
from up.files import write_json
from up.json_text import json_text
from up.preview.history import records_of
from up.tracking.console import write_json_line
from up.tracking.log import MetricsFile, read_metrics

pytestmark = pytest.mark.unit
NAN, INF = math.nan, math.inf


def strict_json(text: str) -> Any:
    """Read JSON as the readers of other languages do."""

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=constant)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": NAN, "b": [1.5, -INF], "c": (INF, "NaN")}, {"a": None, "b": [1.5, None], "c": [None, "NaN"]}),
        ({"a": np.float32("nan"), "b": np.array([1.0, NAN]), "c": np.int64(3)}, {"a": None, "b": [1.0, None], "c": 3}),
        ({"a": Path("b"), "ü": True, "d": None}, {"a": "b", "ü": True, "d": None}),
    ],
)
def test_what_json_lacks(value: Any, expected: Any) -> None:
    assert strict_json(json_text(value)) == expected
    assert strict_json(json_text(value, indent=2)) == expected


def test_a_value_of_another_type_is_an_error() -> None:
    with pytest.raises(TypeError):
        json_text({"a": object(), "b": NAN})
    assert strict_json(json_text({"a": 1j, "b": NAN}, default=str)) == {"a": "1j", "b": None}


def test_files_and_lines_and_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "x.json", {"metric": NAN})
    assert strict_json((tmp_path / "x.json").read_text(encoding="utf-8")) == {"metric": None}
    write_json_line("info", "epoch", "text", train_loss=NAN)
    assert strict_json(capsys.readouterr().out)["train_loss"] is None
    found = Prediction("a.jpg", Classes([[ClassPrediction(0, "cat", NAN)]]))
    for kind in ("json", "jsonl"):
        assert "null" in (text := "".join(rendered([found], kind, ())))
        strict_json(text)


def test_metrics_of_a_run(tmp_path: Path) -> None:
    hook = MetricsFile(every=1)
    hook.on_start(Outline(tmp_path, nn.Identity(), total_steps=10, steps_per_epoch=5, global_batch_size=4), 0)
    hook.on_evaluation(5, {"top1": NAN, "loss": INF})
    path = tmp_path / "metrics.jsonl"
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert strict_json(line) == {"phase": "eval", "step": 5, "epoch": 1.0, "top1": None, "loss": None}
    path.write_text(f'{line}\n{{"phase": "eval", "step": 10, "epoch": 2.0, "top1": NaN, "loss": Infinity}}\n', encoding="utf-8")
    for found in (read_metrics(tmp_path), records_of(tmp_path, "eval")):
        assert [math.isfinite(record["top1"]) or math.isfinite(record["loss"]) for record in found] == [False, False]
    assert {epoch: sorted(values) for epoch, values in evaluations_in(tmp_path).items()} == dict.fromkeys((1, 2), ["loss", "top1"])
    assert math.isnan(metrics_of_best(tmp_path, tmp_path / "ckpt_best.pth")["top1"])
    averages = {"best": "ckpt_soup.pth", "best_metrics": {"top1": NAN, "loss": 1.0}}
    write_json(tmp_path / "averaging.json", averages)
    assert json.loads((tmp_path / "averaging.json").read_text())["best_metrics"]["top1"] is None
    assert math.isnan(metrics_of_best(tmp_path, tmp_path / "ckpt_soup.pth")["top1"])


def test_metrics_are_read_alike_by_all_readers(tmp_path: Path) -> None:
    whole = {"phase": "eval", "step": 2, "epoch": 1.0, "top1\u2028é": 50.0}
    cut = '{"phase": "eval", "step": 4, "epoch": 2.0, "é'.encode()[:-1]
    damaged = b'\n{"phase": "eval"}}\n[1]\n'
    (tmp_path / "metrics.jsonl").write_bytes(json_text(whole).encode() + damaged + cut)
    assert read_metrics(tmp_path) == records_of(tmp_path, "eval") == [whole]
    assert evaluations_in(tmp_path) == {1: {"top1\u2028é": 50.0}}
