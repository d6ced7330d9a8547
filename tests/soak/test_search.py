"""Searches with real trainings whose processes are killed at random moments, and two workers against one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.searching import LR, alive, command, hpo, kill_at_random, rows, search_config, wait_until_alone, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("UP_SOAK_KILLS", "20"))


def test_killed_at_random_moments_it_finishes_and_counts_each_trial_once(images: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver, to a worker beside it, or to a training; after each, the same commands again."""
    run = tmp_path / "run"
    config = search_config(images, run, hpo(trials=4), workers=2)
    config["trainer"]["max_epoch"] = 6
    path = write(config, tmp_path / "s.yaml")
    kill_at_random(path, run, "hpo", KILLS, seed=7)
    assert subprocess.run(command(path), check=False, timeout=900).returncode == 0
    trials = rows(run / "hpo" / "trials.csv")
    complete = [row for row in trials if row["state"] == "complete"]
    assert len(complete) == 4
    assert [row["number"] for row in trials] == [str(at) for at in range(len(trials))]
    assert all(row["state"] in ("complete", "failed") for row in trials)
    assert len({row[LR] for row in trials}) == len(trials)
    assert all(row["epoch"] == "6" for row in complete)
    wait_until_alone(run)


def test_a_stop_is_in_order_and_a_second_worker_helps(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = write(search_config(images, run, hpo(trials=3)), tmp_path / "s.yaml")
    driver = subprocess.Popen(command(path), stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    while "trains" not in driver.stdout.readline():
        assert driver.poll() is None
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75
    assert str(run) in said
    assert alive(str(run)) == []
    driver = subprocess.Popen(command(path), stdout=subprocess.PIPE, text=True)
    worker = subprocess.run(command(path, "worker"), capture_output=True, text=True, timeout=250, check=False)
    said, _ = driver.communicate(timeout=250)
    assert (driver.returncode, worker.returncode) == (0, 0), (said, worker.stderr)
    trials = rows(run / "hpo" / "trials.csv")
    assert [row["state"] for row in trials] == ["complete"] * 3
    assert len({row[LR] for row in trials}) == 3
    status = subprocess.run(command(path, "status"), capture_output=True, text=True, timeout=60, check=False)
    assert "3 complete" in status.stdout


def test_two_workers_are_faster_than_one(images: Path, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2 or os.getloadavg()[0] > 0.5:
        pytest.skip("needs two processors that do nothing else")
    seconds = []
    for workers in (1, 2):
        config = search_config(images, tmp_path / f"run{workers}", hpo(trials=8), workers=workers)
        config["trainer"]["max_epoch"] = 40
        path = write(config, tmp_path / f"s{workers}.yaml")
        begun = time.monotonic()
        assert subprocess.run(command(path), env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode == 0
        seconds.append(time.monotonic() - begun)
    assert seconds[0] >= 1.7 * seconds[1]
