"""Searches of several hosts: a worker in another working folder shares the trials through a server that the test starts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness.facts import tells
from tests.harness.searching import command, hpo, rows, search_config, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PROXY = """\
import sys, warnings
warnings.simplefilter("ignore")
from optuna.storages import JournalStorage, run_grpc_proxy_server
from optuna.storages.journal import JournalFileBackend
run_grpc_proxy_server(JournalStorage(JournalFileBackend(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the server, which the databases refuse to run in as root."""
    with tempfile.TemporaryDirectory() as made:  # not below pytest's, which belongs to its user alone
        if os.geteuid() == 0:
            shutil.chown(made, "nobody")
        yield Path(made)


@pytest.fixture(params=["postgresql", "mysql", "grpc"])
def storage(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The URL of a server that lives as long as the test."""
    port = free_port()
    url, words = {"postgresql": postgres, "mysql": mariadb, "grpc": proxy}[request.param](folder, port)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_for(server, port, folder / "log")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        with closing(socket.socket()) as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def as_nobody() -> list[str]:
    return ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []


def quietly(words: Sequence[str | Path]) -> None:
    subprocess.run([*as_nobody(), *words], check=True, stdout=subprocess.DEVNULL)


def postgres(folder: Path, port: int) -> tuple[str, list[str]]:
    pytest.importorskip("psycopg")
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed")
    data = folder / "data"
    quietly([POSTGRES[-1] / "initdb", "-D", data, "-U", "up", "--auth=trust"])
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    return f"postgresql://up@127.0.0.1:{port}/postgres", [*as_nobody(), str(POSTGRES[-1] / "postgres"), "-D", str(data), *options]


def mariadb(folder: Path, port: int) -> tuple[str, list[str]]:
    pytest.importorskip("pymysql")
    server, install = shutil.which("mariadbd", path="/usr/sbin:/usr/bin"), shutil.which("mariadb-install-db")
    if server is None or install is None:
        pytest.skip("MariaDB is not installed")
    data, first = folder / "data", folder / "first.sql"
    first.write_text("CREATE DATABASE search;\nCREATE USER up@'%';\nGRANT ALL ON *.* TO up@'%';\n")
    quietly([install, "--no-defaults", f"--datadir={data}", "--skip-test-db", "--auth-root-authentication-method=normal"])
    places = [f"--datadir={data}", f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}", f"--init-file={first}"]
    words = [server, "--no-defaults", *places, f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
    return f"mysql+pymysql://up@127.0.0.1:{port}/search", [*as_nobody(), *words]


def proxy(folder: Path, port: int) -> tuple[str, list[str]]:
    pytest.importorskip("grpc")
    return f"grpc://127.0.0.1:{port}", [sys.executable, "-c", PROXY, str(folder / "journal"), str(port)]


def test_a_second_host_shares_the_search_by_a_server(images: Path, tmp_path: Path, storage: str) -> None:
    """The second host is a worker in another working folder, which sees the same run folder."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write(search_config(images, run, hpo(trials=4), storage=storage), tmp_path / "s.yaml")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    driver = subprocess.Popen(command(path), env=environment)
    end = time.monotonic() + 120
    while not (run / "pipeline_state.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    worker = subprocess.Popen(command(path, "worker"), env=environment, cwd=elsewhere, stdout=subprocess.PIPE, text=True)
    said, _ = worker.communicate(timeout=900)
    assert (driver.wait(timeout=900), worker.returncode) == (0, 0)
    trials = rows(run / "hpo" / "trials.csv")
    assert [row["state"] for row in trials] == ["complete"] * 4
    assert "trains" in said
    assert not (run / "hpo" / "study.journal").exists()


def test_a_lost_server_is_one_line_and_the_same_command_continues(images: Path, tmp_path: Path, folder: Path) -> None:
    """The proxy is killed while a trial trains, and started again."""
    port = free_port()
    url, words = proxy(folder, port)
    path = write(search_config(images, tmp_path / "run", hpo(trials=2), storage=url), tmp_path / "s.yaml")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
    wait_for(server, port, folder / "log")
    driver = subprocess.Popen(command(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    while "trains" not in driver.stdout.readline():
        assert driver.poll() is None
    server.kill()
    server.wait()
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 2, said
    assert tells(said.splitlines(), "search.storage", path.name)
    assert "Traceback" not in said
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_for(server, port, folder / "log")
        assert subprocess.run(command(path), check=False, timeout=600).returncode == 0
    finally:
        server.kill()
        server.wait()
    assert [row["state"] for row in rows(tmp_path / "run" / "hpo" / "trials.csv")] == ["complete"] * 2
