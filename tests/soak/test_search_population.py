"""Population based augmentation with real trainings: a copy begins with the weights of its parent at the end of the rung."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.harness.searching import search_config
from tests.harness.states import assert_same, checkpoint

pytestmark = pytest.mark.slow


def test_a_copy_begins_with_the_weights_of_its_parent(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = {"augment": {"algorithm": "pba", "population": 4, "rungs": 2, "epochs_per_rung": 1, "control": 0}}
    config = search_config(images, run, stage, keep_trials="all", workers=2)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "up", "search", "--config", str(tmp_path / "s.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (run / "augment" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows].count("complete") == 4
    (copy,) = [row for row in rows if row["parent"]]
    child, parent = (run / "augment" / "trials" / f"{int(copy[key]):04}" for key in ("number", "parent"))
    start = torch.load(run / "augment" / "starts" / f"{child.name}.pth", weights_only=False)
    after = {path.name: torch.load(path, weights_only=False) for path in parent.glob("ckpt_*.pth") if path.is_file()}
    at_rung = [state for state in after.values() if state["step"] == start["step"]]
    for state in at_rung:
        assert_same(state["model"], start["model"])
    assert at_rung
    assert start["step"] < checkpoint(child)["step"] == checkpoint(parent)["step"]
    epochs = [json.loads(line)["epoch"] for line in (child / "metrics.jsonl").read_text().splitlines() if '"eval"' in line]
    assert epochs == [2]
    assert "resumed from" in (child / "train.log").read_text()
    transforms = yaml.safe_load((run / "augment" / "schedule.yaml").read_text())["dataset.train.dataset.kwargs.transformer"]
    assert "pba_schedule" in [each["type"] for each in transforms]
