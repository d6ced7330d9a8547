"""Searches with real trainings whose processes are killed at random moments, two workers against one, and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.harness.searching import LR, alive, command, hpo, rows, search_config, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("UP_SOAK_KILLS", "20"))
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def wait_until_alone(run: Path) -> None:
    end = time.monotonic() + 60
    while alive(str(run)) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive(str(run)) == []


def test_killed_at_random_moments_it_finishes_and_counts_each_trial_once(images: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver, to a worker beside it, or to a training; after each, the same commands again."""
    run, draw = tmp_path / "run", np.random.default_rng(7)
    config = search_config(images, run, hpo(trials=4), workers=2)
    config["trainer"]["max_epoch"] = 6
    path = write(config, tmp_path / "s.yaml")
    finished = False
    for _ in range(KILLS):
        started = [subprocess.Popen(command(path, *words), stdout=subprocess.DEVNULL) for words in ((), ("worker",))]
        time.sleep(float(draw.uniform(4, 20)))
        targets = [each.pid for each in started] + alive(f"{run}/hpo/trials")
        try:
            os.kill(targets[int(draw.integers(len(targets)))], signal.SIGKILL)
        except ProcessLookupError:  # it had ended
            finished = started[0].wait() == 0
        time.sleep(1)
        for each in started:
            each.kill()
            each.wait()
        wait_until_alone(run)
        if finished:
            break
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


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the test."""
    pytest.importorskip("psycopg")
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed")
    user = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []  # the server refuses to run as root
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's, which belongs to its user alone
        data, port = Path(folder), 20_000 + os.getpid() % 20_000
        if user:
            shutil.chown(data, "nobody")
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([*user, POSTGRES[-1] / "initdb", "-D", data, "-U", "up", "--auth=trust"], **quiet)
        subprocess.run([*user, POSTGRES[-1] / "pg_ctl", "-D", data, "-o", options, "-w", "-l", data / "log", "start"], **quiet)
        try:
            yield f"postgresql://up@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*user, POSTGRES[-1] / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)


def test_a_second_host_shares_the_search_by_a_database(images: Path, tmp_path: Path, database: str) -> None:
    """The second host is a worker in another working folder, which sees the same run folder."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write(search_config(images, run, hpo(trials=4), storage=database), tmp_path / "s.yaml")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    driver = subprocess.Popen(command(path), env=environment)
    end = time.monotonic() + 120
    while not (run / "pipeline_state.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    worker = subprocess.Popen(command(path, "worker"), env=environment, cwd=elsewhere, stdout=subprocess.PIPE, text=True)
    said, _ = worker.communicate(timeout=600)
    assert (driver.wait(timeout=600), worker.returncode) == (0, 0)
    trials = rows(run / "hpo" / "trials.csv")
    assert [row["state"] for row in trials] == ["complete"] * 4
    assert "trains" in said
    assert not (run / "hpo" / "study.journal").exists()
