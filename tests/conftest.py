"""What every test runs under: its tier, few threads, and no plug-ins of the machine that it runs on."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

FIXTURES = ("tests.harness.fixtures", "tests.harness.distilling")
TIERS = ("unit", "integration", "ranks", "slow")
OF_UNITS = ("unit", "architecture")  # folders
OF_RANKS = {"server", "start"}  # fixtures that start several processes of one run


def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures, and torch with them, where tests run: the process that shares them out needs neither."""
    if config.getoption("dist", "no") == "no":
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Function]) -> None:
    """Give each test its tier; a mark at the test wins over its folder and its fixtures."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker(tier_of(item))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later garbage collection, here and in the processes forked from this one."""
    gc.collect()
    gc.freeze()


def tier_of(item: pytest.Function) -> str:
    if not OF_RANKS.isdisjoint(item.fixturenames):
        return "ranks"
    return "unit" if item.path.relative_to(Path(__file__).parent).parts[0] in OF_UNITS else "integration"


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    import torch

    torch.set_num_threads(1)  # for nets this tiny a second thread only waits
    os.environ["OMP_NUM_THREADS"] = "1"  # the same for the processes that tests start
    os.environ.pop("PLUGINPATH", None)


@pytest.fixture(autouse=True)
def _a_fresh_log() -> Iterator[None]:
    """A run in the process of the tests, of a module's fixture too, redirects the log; each test starts with an untouched one."""
    _untouched(logging.getLogger("up"))
    yield
    _untouched(logging.getLogger("up"))


def _untouched(logger: logging.Logger) -> None:
    from up.tracking.log import LogFile

    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if isinstance(handler, LogFile):  # a run's; others are of pytest, which attaches its own
            handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
