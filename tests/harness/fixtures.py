"""Fixtures that tests of several folders share: a tiny data set, a configuration trained in a second, ranks that train it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.faulty import EACH_STEP, GO_ON, fault_config
from tests.harness.launched import FORKED, FORKED_TORCHRUN, Program, forked, spawned
from tests.harness.ranks import Cluster, Server
from tests.harness.tiny import tiny_config, write_images
from up.deploy import provenance


@pytest.fixture(autouse=True, scope="session")
def _signals_reach_what_tests_start() -> None:
    """A signal that is ignored here (``nohup make test``, a job in the background) would be ignored by every program that a test
    starts. One that is handled is as ever there."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@pytest.fixture(autouse=True, scope="session")
def _one_commit() -> None:
    """Packages name the commit of the program: tests that compare their bytes must not see another one in between."""
    provenance.commit_of = cache(provenance.commit_of)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.txt, val.txt and images of three easy classes: mostly red, green or blue, with noise."""
    folder = tmp_path_factory.mktemp("colours")
    write_images(folder)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The process that ranks are forked from, one for all processes of the tests: to start it takes as long as ten runs."""
    made = Server(shared_by_workers(tmp_path_factory))
    yield made
    made.close()


@pytest.fixture(scope="session")
def each_graph_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let torch export each net once, for the modules that ask for it and those after them, here and in processes beside this."""
    from tests.harness.served import graphs_exported_once

    with graphs_exported_once(shared_by_workers(tmp_path_factory) / "graphs"):
        yield


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this start of pytest, the same in all processes that run its tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def without_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures of reports, which take most of the time, but where a test is named after a browser or a drawing."""
    if "browser" not in request.node.name and "draws" not in request.node.name:
        monkeypatch.setattr("up.report.content.svg", lambda *_: "<svg></svg>")
        monkeypatch.setattr("up.tasks.cls.evaluate.reports.confusion_figure", lambda *_: b"")


@pytest.fixture
def cluster(
    server: Server, config: dict[str, Any], write: Callable[[dict[str, Any]], str], tmp_path: Path
) -> Callable[[], Cluster]:
    """Makes what trains ``config``, as the test has changed it by then, on many ranks."""
    return lambda: Cluster(server, tmp_path, write(config))


@pytest.fixture(scope="session")
def unbroken(server: Server, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of ``fault_config`` on two ranks, which nothing befell, with a checkpoint of each step."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(fault_config(images, folder / "run")))
    Cluster(server, folder, str(path)).run(GO_ON, *EACH_STEP)
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of the run that the fault befalls."""
    return tmp_path / "run"


@pytest.fixture
def runs(server: Server, images: Path, tmp_path: Path, write: Callable[[dict[str, Any]], str]) -> Cluster:
    """Trains ``fault_config`` on many ranks."""
    return Cluster(server, tmp_path, write(fault_config(images, tmp_path / "run")))


@pytest.fixture
def config(images: Path, tmp_path: Path) -> dict[str, Any]:
    """A whole configuration; a test changes what it is about."""
    return tiny_config(images, tmp_path / "run")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Write a configuration to a file and return its path."""

    def written(config: dict[str, Any]) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return str(path)

    return written


@pytest.fixture
def start(server: Server, runs: Cluster, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start ``up train`` under a launcher: ours for ``FORKED``; end whatever still runs after the test."""
    programs: list[Program] = []

    def started(before: Sequence[str], *opts: str, after: Sequence[str] = (), fault: str = "", **options: Any) -> Program:
        words = [*after, "--config", runs.path, "--opts", "dataset.train.batch_sampler.kwargs.batch_size=4", GO_ON, *opts]
        output, environment = tmp_path / f"launched-{len(programs)}.txt", {"UP_FAULT": fault} if fault else {}
        environment |= options.pop("environment", {})
        if before == FORKED:
            programs.append(forked(server, ["train", *words], output, environment, **options))
        elif before == FORKED_TORCHRUN:
            entry = "torch.distributed.run:main"
            programs.append(forked(server, [*before[1:], *words], output, environment, entry=entry))
        else:
            programs.append(spawned([*before, *words], output, **environment))
        return programs[-1]

    yield started
    for program in programs:
        program.end()
