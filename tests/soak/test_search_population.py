"""Populations with real trainings: a copy begins with the weights of its parent, and kills change nothing of the result."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from tests.harness.searching import LR, command, kill_at_random, rows, search_config, wait_until_alone, write
from tests.harness.states import assert_same, checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("UP_SOAK_KILLS", "20"))
STAGES = {"pbt": {"space": {LR: {"log": [1e-3, 1.0]}}}, "pba": {"resample": 0.5}}


def test_a_copy_begins_with_the_weights_of_its_parent(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = {"augment": {"algorithm": "pba", "population": 4, "rungs": 2, "epochs_per_rung": 1, "control": 0}}
    path = write(search_config(images, run, stage, keep_trials="all", workers=2), tmp_path / "s.yaml")
    done = subprocess.run(command(path), capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = rows(run / "augment" / "trials.csv")
    assert [row["state"] for row in trials].count("complete") == 4
    (copy,) = [row for row in trials if row["parent"]]
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


@pytest.mark.parametrize("algorithm", STAGES)
def test_killed_at_random_moments_it_ends_as_the_undisturbed_search(images: Path, tmp_path: Path, algorithm: str) -> None:
    """SIGKILL to the driver, to a worker beside it, or to a member; after each, the same commands again."""
    stage = {"algorithm": algorithm, "population": 4, "rungs": 3, "epochs_per_rung": 1, "control": 0, **STAGES[algorithm]}
    tables = {}
    for name, kills in (("whole", 0), ("killed", KILLS)):
        run = tmp_path / name
        path = write(search_config(images, run, {"nas": stage}, keep_trials="all", workers=2), tmp_path / f"{name}.yaml")
        kill_at_random(path, run, "nas", kills, seed=11)
        assert subprocess.run(command(path), check=False, timeout=900).returncode == 0
        wait_until_alone(run)
        columns = ("number", "state", "epoch", "top1", "parent")
        tables[name] = [[row[column] for column in columns] for row in rows(run / "nas" / "trials.csv")]
        lineage = (run / "nas" / "lineage.csv").read_text()
        tables[name].append([lineage])
    assert [row[1] for row in tables["whole"][:-1]].count("complete") == 4
    assert tables["killed"] == tables["whole"]
