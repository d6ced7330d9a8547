"""``up search`` with real trainings: the layout, the test split, resuming after a kill."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.harness.faulty import children_of, is_alive, wait_for
from tests.harness.opened import opened_in
from tests.harness.ranks import Ranks, Server, start
from tests.harness.searching import (
    LR,
    MOMENTUM,
    InThisProcess,
    hpo,
    rows,
    search_config,
    searched,
    undrawn,
    with_test_split_apart,
    write,
)
from up.__main__ import main
from up.search import worker as search_worker


def test_killed_driver_leaves_nothing_and_the_same_command_finishes(images: Path, tmp_path: Path, server: Server) -> None:
    """The driver is killed in its first trial; the trials never open a file of the test split, and full_train does.

    A hook in every process says which of them opens one, the kernel that none is opened unseen.
    """
    run = tmp_path / "run"
    config = search_config(images, run, hpo(trials=2), {"full_train": {"hparams": "hpo.best", "control": False}})
    config["trainer"]["max_epoch"] = 3
    config = with_test_split_apart(config, tmp_path / "test split")
    path = write(config, tmp_path / "s.yaml")
    words, opened_by = ["search", "--config", str(path)], {"OPENED": str(tmp_path / "opened")}

    def begin() -> Ranks:
        entry = "tests.harness.searching:search_with_forked_trainings"
        return start(server, tmp_path, words, world=1, environment=opened_by, entry=entry)

    first = run / "hpo" / "trials" / "0000"
    with opened_in(tmp_path / "test split") as opened:
        driver = begin()
        end = time.monotonic() + 120
        while not (first / "ckpt_latest.pth").exists() and time.monotonic() < end:
            time.sleep(0.05)
        trainings = children_of(driver[0].pid)
        assert len(trainings) == 1
        driver.kill()
        wait_for(lambda: not any(map(is_alive, trainings)))
        assert opened.names() == set()
        again = begin()
        assert again.wait() == [0], again.said
        seen = opened.names()
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
    noted = [json.loads(line) for line in Path(opened_by["OPENED"]).read_text().splitlines()]
    assert {Path(file).name for file, _ in noted} == seen == {file.name for file in (tmp_path / "test split").iterdir()}
    assert all(argv[-1].startswith(str(run / "full_train")) for _, argv in noted)


CELLS = {"candidates": ["skip_connect", "max_pool_3x3"], "nodes": 1, "layers": 3, "init_channels": 4}
FAMILIES = {
    "tpe": hpo(algorithm="tpe", trials=2, startup=1)["hpo"],
    "cma_es": hpo(algorithm="cma_es", trials=1, space={LR: {"log": [1e-3, 1.0]}, MOMENTUM: {"range": [0.5, 0.9]}})["hpo"],
    "asha": hpo(algorithm="asha", trials=2)["hpo"],
    "boss": hpo(algorithm="boss", trials=1)["hpo"],
    "pbt": {**hpo(algorithm="pbt", population=4, rungs=1)["hpo"], "trials": None},
    "pba": {"algorithm": "pba", "population": 4, "rungs": 1, "epochs_per_rung": 1, "control": 0},
    "backbone_nas": {
        "algorithm": "backbone_nas",
        "trials": 1,
        "control": 1,
        "space": {"net.0.kwargs.width": [4, 6]},
        "constraints": {"params": "900k"},
    },
    "darts": {"algorithm": "darts", "max_epoch": 1, "control": 0, "supernet": CELLS},
    "cars": {"algorithm": "cars", "max_epoch": 1, "control": 0, "supernet": CELLS, "runner": {"population": 2, "warmup": 0}},
}


def test_no_algorithm_opens_the_test_split(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each family of algorithms is a stage, with its control rows; they and the check of the file run in this process."""
    monkeypatch.setattr(search_worker, "Child", InThisProcess)
    undrawn(monkeypatch)
    stages = [{name: {key: value for key, value in stage.items() if value is not None}} for name, stage in FAMILIES.items()]
    config = search_config(images, tmp_path / "run", *stages)
    config["trainer"]["max_epoch"] = 1
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 16
    config = with_test_split_apart(config, tmp_path / "test split")
    with opened_in(tmp_path / "test split") as opened:
        assert main(["search", "check", "--config", str(write(config, tmp_path / "s.yaml"))]) == 0
        searched(config, tmp_path / "s.yaml")
        for name in FAMILIES:
            assert (tmp_path / "run" / name / "best.yaml").is_file(), name
        assert opened.names() == set()
        config["search"]["stages"].append({"full_train": {"hparams": "tpe.best", "control": False}})
        searched(config, tmp_path / "s.yaml")
        assert opened.names() == {file.name for file in (tmp_path / "test split").iterdir()}
