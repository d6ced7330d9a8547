"""Limits of a search with real trainings: of 200 networks that were trained, none breaks a limit when it is measured itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.harness.searching import LR, InThisProcess, hpo, rows, search_config, searched
from tests.harness.tiny import load_record
from up.build.experiment import load_experiment
from up.build.network import build_net
from up.build.trained import load_net
from up.models.complexity import complexity
from up.schema.search import LatencyLimit
from up.search import worker
from up.search.constraints import graph_of, latency

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
TRIALS = 200
SIZE = (3, 32, 32)
LIMITS = {"params": 120e3, "macs": 3e6, "package_bytes": 350e3}
# The slowest network that keeps these and is no deep one, and the fastest deep one, which takes four times as long.
SLOWEST: dict[str, Any] = {"width": 6, "layers": [1, 1, 1, 1], "stem": "small"}
DEEP: dict[str, Any] = {"width": 4, "layers": [80, 1, 1, 1], "stem": "imagenet"}
SPACE = {
    "net.0.kwargs.width": [4, 6, 8, 16],
    "net.0.kwargs.layers": [[1, 1, 1, 1], [1, 2, 2, 1], DEEP["layers"]],
    "net.0.kwargs.stem": ["small", "imagenet"],
    LR: {"log": [1e-3, 1e-1]},
}


def latency_of(images: Path, folder: Path, network: dict[str, Any]) -> float:
    config = search_config(images, folder / "run")
    config["net"][0]["kwargs"] |= network
    del config["search"]
    experiment = load_record(config, folder / "network.yaml")
    return latency(graph_of(experiment, build_net(experiment, {"num_classes": 3})), LatencyLimit(max=1.0), SIZE)


def test_no_trained_network_of_200_breaks_a_limit(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Child", InThisProcess)
    monkeypatch.setattr(worker, "_PERIOD_S", 0.0)
    limits = {**LIMITS, "latency_ms": math.sqrt(latency_of(images, tmp_path, SLOWEST) * latency_of(images, tmp_path, DEEP))}
    stage = hpo(trials=TRIALS, space=SPACE)
    config = search_config(images, tmp_path / "run", stage, constraints=limits, holdout=0.5, keep_trials="all")
    config["trainer"]["max_epoch"] = 1
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 16  # one step
    searched(config, tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    complete = [row for row in trials if row["state"] == "complete"]
    rejected = Counter(row["reason"].partition(":")[0] for row in trials if row["state"] == "rejected")
    assert len(complete) == TRIALS
    assert set(rejected) == set(limits)  # each of the limits has been needed
    of_graphs: dict[str, dict[str, float]] = {}  # of the first network of each shape: an export takes seconds
    broken = []
    for row in complete:
        experiment = load_experiment(tmp_path / "run" / row["folder"] / "config.yaml")
        trained = load_net(experiment, tmp_path / "run" / row["folder"] / "ckpt_latest.pth")
        shape = json.dumps(experiment.config.net[0].model_dump())
        if shape not in of_graphs:
            graph = graph_of(experiment, trained.net)
            time = latency(graph, LatencyLimit(max=1.0), SIZE)
            of_graphs[shape] = {"package_bytes": float(len(graph)), "latency_ms": time}
        parameters = sum(each.numel() for each in trained.net.parameters())
        macs = complexity(trained.net, SIZE).total.macs
        measured = {"params": float(parameters), "macs": float(macs), **of_graphs[shape]}
        broken += [(row["number"], name, value) for name, value in measured.items() if value > limits[name]]
    print(f"{len(broken)} of {len(complete)} break a limit; rejected before training: {dict(rejected)}")
    assert broken == []
    assert len(of_graphs) > 4
