"""``up search`` with real trainings: the layout, the test split, resuming after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.harness.ranks import Server, start
from tests.harness.searching import LR, alive, command, hpo, rows, search_config, write

HOOK = """\
import os, sys
def _note(event, arguments):
    if event == "open" and str(arguments[0]).endswith("val.txt"):
        with open(os.environ["OPENED"], "a") as file:
            file.write(" ".join(sys.orig_argv) + "\\n")
sys.addaudithook(_note)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Each process of a search notes that it opens the list of the test images."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    paths = os.pathsep.join([str(tmp_path / "hook"), str(Path(__file__).parents[2])])
    return {**os.environ, "PYTHONPATH": paths, "OPENED": str(tmp_path / "opened"), "OMP_NUM_THREADS": "1"}


def test_killed_driver_leaves_nothing_and_the_same_command_finishes(
    images: Path, tmp_path: Path, environment: dict[str, str], server: Server
) -> None:
    """The driver is killed in its first trial; the trials never open the test split, and full_train does.

    The second time its processes are forked from one that has imported torch.
    """
    run = tmp_path / "run"
    config = search_config(images, run, hpo(trials=2), {"full_train": {"hparams": "hpo.best", "control": False}})
    config["trainer"]["max_epoch"] = 3
    path = write(config, tmp_path / "s.yaml")
    driver = subprocess.Popen(command(path), env=environment, stdout=subprocess.DEVNULL)
    first = run / "hpo" / "trials" / "0000"
    end = time.monotonic() + 120
    while not (first / "ckpt_latest.pth").exists() and time.monotonic() < end:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    end = time.monotonic() + 60
    while alive(str(first)) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive(str(run)) == []
    again = start(
        server,
        tmp_path,
        ["search", "--config", str(path)],
        world=1,
        environment={"OPENED": environment["OPENED"]},
        entry="tests.harness.searching:search_with_forked_trainings",
    )
    assert again.wait() == [0], again.said
    trials = rows(run / "hpo" / "trials.csv")
    assert [(row["number"], row["state"], row["epoch"]) for row in trials] == [("0", "complete", "3"), ("1", "complete", "3")]
    assert "resumed from" in (first / "train.log").read_text()
    best = max(trials, key=lambda row: float(row["top1"]))
    assert yaml.safe_load((run / "hpo" / "best.yaml").read_text()) == {LR: float(best[LR])}
    for name in ("pipeline.yaml", "pipeline_state.json", "report.md", "report.html", "hpo/pareto.csv", "hpo/study.journal"):
        assert (run / name).is_file(), name
    for name in ("config.yaml", "status.json", "metrics.jsonl", "train.log", "ckpt_latest.pth"):
        assert (first / name).is_file(), name
    winner = run / "full_train" / "best"
    assert json.loads((winner / "status.json").read_text())["state"] == "done"
    evaluations = [line for line in (winner / "metrics.jsonl").read_text().splitlines() if '"eval"' in line]
    assert len(evaluations) == 1
    opened = Path(environment["OPENED"]).read_text().splitlines()
    assert opened
    assert all("full_train" in line for line in opened)
