"""What tests of faults share: the run that they befall, and what it must come to in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness.ranks import Cluster
from tests.harness.runs import numbers_of
from tests.harness.states import assert_same, checkpoint
from tests.harness.tiny import tiny_config

Config = dict[str, Any]
SOON_S = 90.0  # "within ten seconds", on a machine that six others use
GO_ON = "saver.auto_resume=true"
WORKERS = "dataset.train.dataloader.kwargs.num_workers={}"


def fault_config(images: Path, run: Path) -> Config:
    """Eight updates, evaluated and saved after the fourth and the last, with a moving average."""
    config = tiny_config(images, run)
    config["runtime"]["iter_base"] = True
    config["trainer"] |= {"max_iter": 8, "test_freq": 4, "save_freq": 4}
    config["ema"] = {"enable": True, "ema_type": "linear", "kwargs": {"decay": 0.9, "warmup": 10}}
    return config


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())  # type: ignore[no-any-return]


def finishes_equal(runs: Cluster, run: Path, unbroken: Path, *opts: str) -> None:
    """The same command again, without the fault."""
    runs.run(GO_ON, *opts)
    is_equal(run, unbroken)


def is_equal(run: Path, unbroken: Path) -> None:
    whole, resumed = checkpoint(unbroken), checkpoint(run)
    for part in ("model", "optimizer", "ema", "metrics", "best", "hooks"):
        assert_same(whole[part], resumed[part], part)
    assert numbers_of(unbroken) == numbers_of(run)
    assert status(run)["state"] == "done"


def wait_for(condition: Callable[[], object], seconds: float = SOON_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def step_reached(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
